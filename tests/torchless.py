"""The `mocoembed` command where importing torch or torchvision fails: `python -c WITHOUT_TORCH ARGUMENTS`."""

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
