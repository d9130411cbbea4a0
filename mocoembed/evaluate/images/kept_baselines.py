"""Baselines that were measured before: a file in the workspace for all that they depend on.

In: what they were measured on, as plain JSON types. Out: name -> `Baseline`. The file is replaced as a whole whenever
there is one more; its name is a digest of what it is of, and it holds the SHA-256 of its content.
"""

import pathlib
from collections.abc import Callable
from dataclasses import asdict

from mocoembed.errors import FormatError
from mocoembed.evaluate.baselines import Baseline, Fits
from mocoembed.evaluate.measures import Measured
from mocoembed.files import read_json, sha256_json, write_json
from mocoembed.version import __version__

KIND, FORMAT = "mocoembed baselines", 1


class KeptBaselines:
    """The file in `folder` for baselines of `of`: images, labels, encoder, seeds."""

    def __init__(self, folder: pathlib.Path, of: dict):
        self.of = {**of, "mocoembed": __version__}  # another version may compute them otherwise
        self.path = folder / f"{sha256_json(self.of)[:16]}.json"

    def read(self, note: Callable[[str], None]) -> dict[str, Baseline]:
        """Name -> what was measured; nothing where there is no file. `note(text)` is told of a damaged one."""
        if not self.path.exists():
            return {}
        try:
            content = read_json(self.path)
            sealed = content.pop("sha256", None)
            if content.get("kind") != KIND or content.get("of") != self.of or sealed != sha256_json(content):
                raise FormatError(f"{self.path} is damaged.")
        except FormatError as error:
            note(f"{error} The baselines are measured again.")
            return {}
        return {name: Baseline({measure: Measured.of(value) for measure, value in one["values"].items()},
                               Fits(**one["fits"])) for name, one in content["baselines"].items()}

    def write(self, found: dict[str, Baseline]):
        """Replace the file."""
        content = {"kind": KIND, "format": FORMAT, "of": self.of,
                   "baselines": {name: asdict(one) for name, one in found.items()}}
        write_json(self.path, {**content, "sha256": sha256_json(content)})

    def delete(self):
        """Forget all of it."""
        self.path.unlink(missing_ok=True)
