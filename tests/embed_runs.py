"""Embeddings to be disturbed: what a workspace holds before and after, and what must hold in between.

The output is absent, the old file or the new one; what is committed is kept; and the same command again leaves the
workspace as if nothing had happened, byte for byte.
"""

import dataclasses
import json
import pathlib
import re

import numpy as np
from killing import Run
from PIL import Image

import mocoembed
from mocoembed.config import InfoConfig

COMMIT = 4  # images, where there are only a dozen
MANY, MANY_COMMIT = 1200, 256
BATCH = ("--batch-size", 4, "--workers", 0)


@dataclasses.dataclass(frozen=True)
class Work:
    """Something to embed: the files of a workspace before and after (relative path -> bytes)."""

    folder: pathlib.Path
    before: dict[str, bytes]
    after: dict[str, bytes]

    @property
    def old(self) -> bytes | None:
        """The embeddings file that was there before."""
        return self.before.get("embeddings.h5")

    @property
    def new(self) -> bytes:
        """The embeddings file that there must be at the end."""
        return self.after["embeddings.h5"]


def files_of(folder) -> dict[str, bytes]:
    """Relative path -> content of every file in a folder."""
    return {str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(pathlib.Path(folder).rglob("*")) if path.is_file()}


def lay(files: dict[str, bytes], folder) -> pathlib.Path:
    """Make `folder` hold these files."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def embed(work: Work, workspace, *options, prepare=None, output=None) -> Run:
    """A waiting run that embeds into a workspace; what it prints goes beside that, or into the folder `output`."""
    return Run(output or workspace.with_name(f"{workspace.name}-output"), "embed", work.folder,
               "--workspace", workspace, "--device", "cpu", "--json", *options, prepare=prepare)


def commit_often():
    """In a run: two parts of several batches, and a commit after every batch."""
    from mocoembed.embed import fill, work

    assert work.PARTS > 2
    assert fill.COMMIT_IMAGES > COMMIT
    work.PARTS, fill.COMMIT_IMAGES = 2, COMMIT


def tell_every_batch():
    """In a run: two parts, a commit after every `MANY_COMMIT` images, a line about the progress after every batch."""
    from mocoembed.cli import progress
    from mocoembed.embed import fill, work

    assert work.PARTS > 2
    assert progress.SECONDS_BETWEEN_LINES > 0
    assert fill.COMMIT_IMAGES > MANY_COMMIT
    work.PARTS, progress.SECONDS_BETWEEN_LINES, fill.COMMIT_IMAGES = 2, 0.0, MANY_COMMIT


def whole(work: Work, workspace) -> dict[str, bytes]:
    """The files of a workspace after an embedding that nothing disturbed."""
    run = embed(work, lay(work.before, workspace), *BATCH, prepare=commit_often).go()
    assert run.wait() == 0, run.stderr
    return files_of(workspace)


def committed(workspace) -> int:
    """Images that an unfinished embedding has committed, as `mocoembed info` says; 0 when it has only begun."""
    work = workspace / "embeddings.h5.work"
    if not work.exists():
        return 0
    told = mocoembed.describe(InfoConfig(str(work)))
    return told["committed"] if told["committed"] > told["unchanged"] else 0


def require_old_or_new(work: Work, workspace):
    """The output is absent, the old file or the new one."""
    output = workspace / "embeddings.h5"
    assert (output.read_bytes() if output.exists() else None) in (work.old, work.new)


def require_recovery(work: Work, workspace, *options):
    """The same command again loses nothing that was committed and comes to the end that was to be."""
    require_old_or_new(work, workspace)
    published = work.new != work.old and files_of(workspace).get("embeddings.h5") == work.new
    kept = 0 if published else committed(workspace)
    run = embed(work, workspace, *(options or BATCH)).go()
    assert run.wait() == 0, run.stderr
    assert json.loads(run.stdout)["resumed_from"] >= kept
    assert files_of(workspace) == work.after


def put_image(path, seed: int):
    """A little image of noise; with another seed another one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def done(run: Run) -> int:
    """Images that a run that tells every batch has said to be done."""
    lines = re.findall(r"^embed: (\d+) of \d+ images$", run.stderr, re.MULTILINE)
    return int(lines[-1]) if lines else 0
