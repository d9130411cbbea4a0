"""The shape of the project: who imports whom, who owns what, and that everything is documented."""

import ast
import dataclasses
import pathlib
import re
import subprocess
import sys

import click
import pytest

from mocoembed.cli.main import COMMANDS, cli

ROOT = pathlib.Path(__file__).parent.parent
# From the source of the flow to its end: a module imports only from its own room and from rooms before it.
ROOMS = ["version", "errors", "notes", "checks", "recipes", "config", "files", "memory", "cores", "workspace",
         "verified", "data", "model", "knn", "geometry", "train", "embed", "search", "serve", "evaluate", "report",
         "info", "demo", "__init__", "cli", "__main__", "benchmarks"]
OWNERS = {"h5py": {"mocoembed/embed/store.py", "mocoembed/embed/store_writer.py"},
          "faiss": {"mocoembed/search/faiss_parts.py"}, "timm": {"mocoembed/model/timm_backbone.py"},
          "huggingface_hub": {"mocoembed/model/timm_backbone.py"},
          "openTSNE": {"mocoembed/search/map.py"},
          "pyarrow": {"mocoembed/embed/parquet.py"}, "pillow_heif": {"mocoembed/data/formats.py"},
          "pymilvus": {"mocoembed/search/milvus.py"}, "milvus_lite": {"mocoembed/search/milvus.py"},
          "grpc": {"mocoembed/search/milvus.py"},
          "onnx": {"mocoembed/model/weights.py"}, "onnxruntime": {"mocoembed/model/graph.py"},
          "safetensors": {"mocoembed/model/encoder_file.py", "mocoembed/model/encoder_metadata.py"},
          "PIL": {"mocoembed/data/decode.py", "mocoembed/data/deep.py", "mocoembed/data/formats.py",
                  "mocoembed/data/given.py",
                  "mocoembed/data/gif.py",
                  "mocoembed/data/jpeg.py", "mocoembed/data/png.py", "mocoembed/data/tiff.py",
                  "mocoembed/data/tiff_segments.py", "mocoembed/data/crop.py", "mocoembed/data/evaluation.py",
                  "mocoembed/data/sample.py", "mocoembed/data/thumbnail.py", "mocoembed/search/sheet.py"},
          "starlette": {"mocoembed/serve/"}, "uvicorn": {"mocoembed/serve/app.py", "mocoembed/serve/connections.py"}}
MODULES = sorted(path.relative_to(ROOT) for folder in ("mocoembed", "cli", "benchmarks")
                 for path in (ROOT / folder).rglob("*.py"))


def parsed(path):
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


def module_name(path):
    """`mocoembed/data/views.py` -> `mocoembed.data.views`; `cli/x.py` -> `mocoembed.cli.x`."""
    parts = list(path.with_suffix("").parts)
    if parts[0] == "cli":
        parts = ["mocoembed", *parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


def imports(path):
    """Every module of ours or of others that a file imports, anywhere in it."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
            yield node.module


def room(name):
    parts = name.split(".")
    if parts[0] == "benchmarks":
        return "benchmarks"
    return parts[1] if len(parts) > 1 and parts[1] in ROOMS else "__init__"


NAMES = {module_name(path): path for path in MODULES}


def our_imports(path):
    return {name for name in imports(path) if name in NAMES and name != module_name(path)}


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_point_back_along_the_flow(path):
    here = ROOMS.index(room(module_name(path)))
    for name in our_imports(path):
        there = ROOMS.index(room(name))
        assert there <= here, f"{path} imports {name}"
        assert there < here or room(name) in ("config", "data", "model", "train", "embed", "search", "serve",
                                              "evaluate", "report", "cli", "benchmarks"), f"{path} imports {name}"


def test_no_import_cycles():
    graph = {name: our_imports(path) for name, path in NAMES.items()}
    done, open_now = set(), []

    def visit(name):
        assert name not in open_now, " -> ".join([*open_now[open_now.index(name):], name])
        if name not in done:
            open_now.append(name)
            for other in graph[name]:
                visit(other)
            open_now.pop()
            done.add(name)

    for name in graph:
        visit(name)
    assert len(done) == len(MODULES)


@pytest.mark.parametrize("library", OWNERS)
def test_each_heavy_library_has_its_owners(library):
    rooms = tuple(owner for owner in OWNERS[library] if owner.endswith("/"))
    users = {next((owner for owner in rooms if str(path).startswith(owner)), str(path)) for path in MODULES
             if path.parts[0] != "benchmarks" for name in imports(path) if name.split(".")[0] == library}
    assert users == OWNERS[library]


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_modules_classes_and_public_functions_have_docstrings(path):
    tree = parsed(path)
    if path.name == "__init__.py" and not tree.body:
        return
    assert ast.get_docstring(tree), f"{path} has no docstring"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{path}: {node.name} has no docstring"
            if isinstance(node, ast.ClassDef):
                for method in node.body:
                    if isinstance(method, ast.FunctionDef) and not method.name.startswith("_") \
                            and method.name not in ("forward", "convert", "list_commands", "get_command"):
                        assert ast.get_docstring(method), f"{path}: {node.name}.{method.name} has no docstring"


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_modules_and_functions_stay_small(path):
    text = (ROOT / path).read_text(encoding="utf-8")
    assert text.count("\n") <= 320, f"{path} is long; split it"
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, f"{path}: {node.name} is long"
            arguments = node.args
            count = len(arguments.posonlyargs + arguments.args + arguments.kwonlyargs)
            assert count <= 7, f"{path}: {node.name} has {count} parameters"
            assert path.parts[0] == "cli" or arguments.kwarg is None or node.name in (
                "of", "_make_layer", "element"), path  # an element has any attributes


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_no_pickle_is_loaded_and_nothing_is_evaluated(path):
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called == "torch.load":
                keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert keywords.get("weights_only") == "True", f"{path}: torch.load without weights_only=True"
            if path.parts[0] != "benchmarks":  # they may run a peer's own code
                assert called not in ("eval", "exec", "pickle.load", "pickle.loads", "np.load", "numpy.load"), path


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)])
def test_help_loads_no_heavy_library(arguments):
    script = ("import sys\nfrom mocoembed.cli.main import main\n"
              "try:\n    main(sys.argv[1:])\nexcept SystemExit as leaving:\n    assert not leaving.code\n"
              "heavy = {'torch', 'torchvision', 'timm', 'faiss', 'h5py', 'numpy', 'PIL', 'pyarrow', 'pymilvus'}\n"
              "heavy &= set(sys.modules)\n"
              "assert not heavy, heavy\n")
    subprocess.run([sys.executable, "-c", script, *arguments], check=True, capture_output=True, timeout=60)


def test_importing_the_package_loads_no_heavy_library():
    script = "import sys, mocoembed; assert not {'torch', 'faiss', 'h5py', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_every_public_name_can_be_imported():
    import mocoembed

    for name in mocoembed.__all__:
        assert getattr(mocoembed, name) is not None


def documentation():
    return "\n".join(path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_has_help_and_stands_in_the_docs(name):
    text = documentation()
    command = cli.get_command(click.Context(cli), name)
    assert command.help
    assert f"mocoembed {name}" in text
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name}: {parameter.opts} has no help"
            for spelling in parameter.opts:
                assert re.search(rf"(?<![\w-]){re.escape(spelling)}(?![\w-])", text), f"{name} {spelling}"


def test_no_option_grew_unnoticed():
    """A new option is a decision: raise the number here, with the docs."""
    from mocoembed import config

    fields = {kind.__name__: len(dataclasses.fields(kind)) for kind in vars(config).values()
              if dataclasses.is_dataclass(kind)}
    assert fields == {"PretrainConfig": 64, "ExportConfig": 8, "EmbedConfig": 20, "IndexConfig": 9, "SearchConfig": 22,
                      "KnnConfig": 13, "InfoConfig": 2, "DemoConfig": 4, "ConvertConfig": 10, "DuplicatesConfig": 7,
                      "RetrievalConfig": 9, "CompareConfig": 2, "ServeConfig": 10, "MapConfig": 3, "LinearConfig": 12,
                      "ProbeConfig": 17, "PushConfig": 9, "MilvusConfig": 3, "RankmeConfig": 6,
                      "ReportConfig": 4, "ClassifyConfig": 6, "FinetuneConfig": 22}


def test_the_reference_of_commands_is_up_to_date():
    from mocoembed.cli.reference import reference

    assert (ROOT / "docs" / "commands.md").read_text(encoding="utf-8") == reference()
