"""A test file that is also a script: what its process prints as JSON on the last line."""

import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent


def found_by(script: str, *arguments):
    """Run a test file in a process of its own, for what cannot be taken back, such as telling torch of a GPU."""
    done = subprocess.run([sys.executable, script, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])
