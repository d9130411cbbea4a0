"""The recipe of a machine that only searches (docs/search.md): the packages that it installs are enough, and needed."""

import importlib.metadata
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from packaging.requirements import Requirement

ROOT = pathlib.Path(__file__).parent.parent
MODULES = {"pillow": "PIL", "faiss-cpu": "faiss"}  # of packages whose module has another name
IN_PLACE_OF = {"faiss-cpu": "faiss-gpu"}  # Meta's wheel for Linux has the same module
# What runs there, and in the end the names of all modules that were loaded.
SCRIPT = """
import atexit, json, sys
def told():
    with open(sys.argv[-1], "w") as file:
        json.dump(sorted({name.partition(".")[0] for name in sys.modules}), file)

atexit.register(told)
from mocoembed.cli.main import main
main(sys.argv[1:-1])
"""


def recipe() -> list[str]:
    """The packages that `docs/search.md` installs."""
    text = (ROOT / "docs" / "search.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^searching/bin/pip install (?!--no-deps)(.*)$", text, re.MULTILINE)
    return line.split()


def with_what_they_need(names: list[str]) -> list[importlib.metadata.Distribution]:
    """The installed packages of these names and all that pip installs with them."""
    found, todo = {}, list(names)
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        if name in found:
            continue
        try:
            found[name] = importlib.metadata.distribution(IN_PLACE_OF.get(name, name))
        except importlib.metadata.PackageNotFoundError:
            found[name] = importlib.metadata.distribution(name)
        todo += [needed.name for needed in map(Requirement, found[name].requires or [])
                 if needed.marker is None or needed.marker.evaluate({"extra": ""})]
    return list(found.values())


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    """`machine(*arguments)` runs the command line where only the recipe's packages are; (process, modules loaded)."""
    site = tmp_path_factory.mktemp("site")
    for package in with_what_they_need(recipe()):
        for top in {file.parts[0] for file in package.files} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(package.locate_file(top))
    (site / "mocoembed").mkdir()
    for path in (ROOT / "mocoembed").iterdir():
        (site / "mocoembed" / path.name).symlink_to(path)
    (site / "mocoembed" / "cli").symlink_to(ROOT / "cli")

    def run(*arguments, stderr=subprocess.PIPE):
        names = site.parent / "modules.json"
        done = subprocess.run([os.path.realpath(sys.executable), "-S", "-s", "-c", SCRIPT, *map(str, arguments), names],
                              stdout=subprocess.PIPE, stderr=stderr, text=True, check=False, cwd=site.parent,
                              env={**os.environ, "PYTHONPATH": str(site)})
        return done, set(json.loads(names.read_text()))

    return run


def test_what_the_recipe_installs_is_enough_and_needed(machine, indexed_workspace, images, tmp_path):
    root = pathlib.Path(shutil.copytree(indexed_workspace, tmp_path / "ws"))
    query, queries = images / "red" / "000.png", images / "blue"
    needed = set()
    for command in (["search", query], ["search", queries, "--json"], ["search", "--row", "3", "--unique"],
                    ["search", query, "--sheet", tmp_path / "hits.png"], ["index"], ["info", root / "embeddings.h5"],
                    ["info", root / "embeddings.faiss", "--verify"], ["info", root / "encoder.safetensors"],
                    ["convert", "--to", "npy"], ["convert", "--to", "csv"], ["duplicates", "--threshold", "0.99"]):
        done, modules = machine(*command, *([] if command[0] == "info" else ["--workspace", root]))
        assert done.returncode == 0, (command, done.stderr)
        needed |= modules
    terminal, other_end = os.openpty()
    needed |= machine("search", queries, "--workspace", root, stderr=other_end)[1]  # with a progress bar
    os.close(terminal)
    os.close(other_end)
    assert {MODULES.get(name, name) for name in recipe()} <= needed
    assert not {"torch", "torchvision", "timm", "onnx", "pyarrow"} & needed


def test_what_it_cannot_do_is_said(machine, indexed_workspace, images):
    for command, status, package in ((["embed", images], 1, "torch"), (["knn"], 1, "torch"),
                                     (["convert", "--to", "parquet"], 2, "pyarrow")):
        done, _ = machine(*command, "--workspace", indexed_workspace)
        assert done.returncode == status
        assert f"needs the package {package}" in done.stderr
        assert "Traceback" not in done.stderr


def test_it_finds_what_the_whole_installation_finds(machine, indexed_workspace, images, run_cli, tmp_path):
    """With a copy of three things of the workspace."""
    arguments = ("search", images / "green", "--json", "--workspace")
    for name in ("embeddings.h5", "embeddings.faiss"):
        shutil.copy(indexed_workspace / name, tmp_path)
    shutil.copytree(indexed_workspace / "encoders", tmp_path / "encoders")
    done, _ = machine(*arguments, tmp_path)
    ours, theirs = json.loads(run_cli(*arguments, indexed_workspace)[1]), json.loads(done.stdout)
    for one, other in zip(ours, theirs, strict=True):
        assert [hit["path"] for hit in one["hits"]] == [hit["path"] for hit in other["hits"]]
        np.testing.assert_allclose(*([hit["score"] for hit in some["hits"]] for some in (one, other)), atol=1e-6)
