"""`python -c WITHOUT_TORCH ARGUMENTS`: the `mocoembed` command where importing torch fails; and workspaces for it."""

import pathlib
import shutil

WITHOUT_TORCH = """
import sys

class Refused:
    def find_spec(self, name, *more):
        if name.partition(".")[0] in ("torch", "torchvision"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refused())
from mocoembed.cli.main import main
main(sys.argv[1:])
"""


def copied(workspace: pathlib.Path, folder: pathlib.Path, graph: str) -> tuple[pathlib.Path, pathlib.Path]:
    """A copy of a workspace, in `folder`, that a test may change; and the path of its only file `graph`, a glob."""
    root = folder / "ws"
    shutil.copytree(workspace, root)
    (found,) = root.glob(graph)
    return root, found
