"""Searching without torch: the encoder's graph on ONNX Runtime, and what happens where there is none."""

import errno
import io
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torchless import WITHOUT_TORCH, copied

from mocoembed.config import EmbedConfig, SearchConfig
from mocoembed.data.decode import EncodedImage
from mocoembed.data.evaluation import EvaluationTransform
from mocoembed.embed.extract import embed_images
from mocoembed.errors import FormatError, UsageError
from mocoembed.model import graph_export
from mocoembed.model.embedder import Embedder
from mocoembed.model.encoder import Encoder, EncoderSpec
from mocoembed.model.encoder_file import FrozenEncoder
from mocoembed.model.graph import NO_TELEMETRY, GraphEncoder, description_file, read_description
from mocoembed.model.graph_export import keep_graph
from mocoembed.model.precision import Compute
from mocoembed.recipes import IMAGENET_MEAN, IMAGENET_STD
from mocoembed.search.pair import Pair
from mocoembed.search.query import search_images
from mocoembed.workspace import Workspace


def without_torch(*arguments, cwd=None):
    return subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *map(str, arguments)], capture_output=True, text=True,
                          check=False, cwd=cwd)


@pytest.fixture
def ours(indexed_workspace, tmp_path):
    """A copy of the indexed workspace, and the path of its graph."""
    return copied(indexed_workspace, tmp_path, "encoders/*.query.onnx")


@pytest.fixture
def query(images):
    return str(sorted(images.rglob("*.jpg"))[0])


def hits(root, query, note=lambda text: None, **more):
    (result,) = search_images(SearchConfig((query,), str(root), k=5, device="cpu", **more), note=note)
    return [hit.path for hit in result.hits], [hit.score for hit in result.hits]


def engine(root):
    with Pair(SearchConfig(("x",), str(root), device="cpu")) as pair:
        return type(pair._encoder).__name__


@pytest.mark.parametrize("features", ["backbone", "projection"])
@pytest.mark.parametrize("normalized", [True, False])
def test_the_graph_gives_what_torch_gives(make_encoder, tmp_path, features, normalized):
    frozen = make_encoder()
    keep_graph(tmp_path / "g.onnx", frozen, pytest.fail)
    graph = GraphEncoder(tmp_path / "g.onnx", frozen.fingerprint(), features, normalized)
    assert graph.transform == frozen.transform
    pixels = np.random.default_rng(0).integers(0, 256, (19, 32, 32, 3), np.uint8)  # more than at a time
    expected = Embedder(frozen, Compute.of("cpu", "fp32"), features, normalized)(
        torch.from_numpy(pixels).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(graph(pixels), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("arch", "side"), [("resnet50", 64), ("mobilenet_v3_small", 64), ("vit_b_16", 224),
                                            ("timm:tf_efficientnet_lite0", 64), ("timm:convnext_atto", 64)])
def test_other_kinds_of_encoders_have_graphs_too(tmp_path, arch, side):
    torch.manual_seed(0)
    frozen = FrozenEncoder(Encoder(EncoderSpec(arch, 1.0, "7x7s2-pool", "none", 0)).eval().requires_grad_(False),
                           EvaluationTransform.of(side, IMAGENET_MEAN, IMAGENET_STD), {})
    keep_graph(tmp_path / "g.onnx", frozen, pytest.fail)
    graph = GraphEncoder(tmp_path / "g.onnx", frozen.fingerprint(), "backbone", True)
    pixels = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), np.uint8)
    expected = Embedder(frozen, Compute.of("cpu", "fp32"), "backbone", True)(
        torch.from_numpy(pixels).permute(0, 3, 1, 2)).numpy()
    assert (graph(pixels) * expected).sum(axis=1).min() > 0.99999
    with pytest.raises(UsageError, match="no projection features"):
        GraphEncoder(tmp_path / "g.onnx", frozen.fingerprint(), "projection", True)


def test_pixels_without_torch_are_at_most_one_level_off():
    random = np.random.default_rng(0)
    for size in ((300, 200), (90, 400), (32, 32), (20, 31)):
        file, noise = io.BytesIO(), random.integers(0, 256, (size[1] // 4, size[0] // 4, 3), np.uint8)
        Image.fromarray(noise).resize(size).save(file, "PNG")
        for mode in ("shorter-side", "squash"):
            transform = EvaluationTransform(73, 64, IMAGENET_MEAN, IMAGENET_STD, mode=mode)
            one, other = (transform.pixels(EncodedImage(file.getvalue()), with_torch).astype(int)
                          for with_torch in (True, False))
            assert abs(one - other).max() <= 1


def test_embed_leaves_a_graph_and_search_uses_it(ours, query):
    root, _ = ours
    assert engine(root) == "GraphEncoder"
    with_torch = hits(root, query, torch=True)
    assert hits(root, query)[0] == with_torch[0]
    np.testing.assert_allclose(hits(root, query)[1], with_torch[1], atol=2e-3)  # a level of a pixel here and there


def test_the_searching_half_does_not_load_torch(ours, query, tmp_path):
    root, _ = ours
    for arguments in (["search", query, "-k", 3, "--json"], ["search", query, "--sheet", tmp_path / "hits.png"],
                      ["info", root / "embeddings.h5", "--verify"], ["info", root / "embeddings.faiss", "--verify"],
                      ["info", root / "encoder.safetensors"], ["index"], ["duplicates", "--threshold", "0.99"],
                      ["convert", "--to", "npy"], ["convert", "--to", "csv"]):
        where = [] if arguments[0] == "info" else ["--workspace", root]
        done = without_torch(*arguments, *where)
        assert done.returncode == 0, (arguments, done.stderr)
    for arguments in (["search", query, "--torch"], ["embed", os.path.dirname(query)]):
        done = without_torch(*arguments, "--workspace", root)
        assert done.returncode == 1
        assert done.stderr.endswith("mocoembed: this needs the package torch, which is not installed. "
                                    "Install it with: pip install torch\n")


def test_searching_tells_nobody(ours, query, tmp_path):
    """onnxruntime would keep an id of the machine there, and what it is going to send to its makers."""
    root, _ = ours
    told = ("CI", "ORT_RUNNING_UNIT_TESTS", NO_TELEMETRY)  # each keeps it quiet, too
    environment = {name: value for name, value in os.environ.items() if name not in told}
    subprocess.run([sys.executable, "-m", "mocoembed", "search", query, "--workspace", root, "--json"], check=True,
                   capture_output=True, env={**environment, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)})
    ours = (root, tmp_path / "mocoembed")  # the latter: what was verified, if the files are some seconds old
    assert not [path for path in tmp_path.iterdir() if path not in ours]


@pytest.mark.parametrize("harm", ["graph", "description", "foreign", "no description"])
def test_a_graph_that_is_not_the_encoders_is_not_used(ours, query, harm):
    root, graph = ours
    expected, said = hits(root, query, torch=True)[0], []
    if harm == "graph":
        data = bytearray(graph.read_bytes())
        data[len(data) // 2] ^= 1
        graph.write_bytes(data)
    elif harm == "description":
        description_file(graph).write_text("{")
    elif harm == "foreign":
        other = json.loads(description_file(graph).read_text())
        description_file(graph).write_text(json.dumps({**other, "fingerprint": "0" * 64}))
    else:
        description_file(graph).unlink()
    assert hits(root, query, said.append)[0] == expected
    assert len(said) == (harm != "no description")
    assert all("embedded by torch instead" in text for text in said)


@pytest.mark.parametrize("harm", ["no graph", "no description", "neither", "damaged graph", "damaged description"])
def test_a_graph_that_is_not_whole_is_made_again_for_the_next_time(ours, query, harm):
    root, graph = ours
    if harm in ("no graph", "neither"):
        graph.unlink()
    if harm in ("no description", "neither"):  # as after a kill between writing the two
        description_file(graph).unlink()
    if harm == "damaged graph":
        graph.write_bytes(graph.read_bytes()[:-1])
    elif harm == "damaged description":
        description_file(graph).write_text("{")
    assert engine(root) == "_TorchEncoder"
    assert engine(root) == "GraphEncoder"
    read_description(graph, graph.name.removesuffix(".query.onnx"))
    with pytest.raises(FormatError, match="of another encoder"):
        read_description(graph, "0" * 64)


def test_less_precise_vectors_and_given_encoders_use_torch(ours, images):
    root, _ = ours
    with Pair(SearchConfig(("x",), str(root), encoder=str(root / "encoder.safetensors"), device="cpu")) as one:
        assert type(one._encoder).__name__ == "_TorchEncoder"


def test_an_encoder_that_cannot_be_exported_costs_nothing_else(make_encoder, workspace, images, tmp_path, monkeypatch):
    def fail(*arguments, **more):
        raise RuntimeError("no such operator\nand so on")

    said, places = [], Workspace(tmp_path)
    monkeypatch.setattr(graph_export.torch.onnx, "export", fail)
    embed_images(EmbedConfig(str(images), str(tmp_path), str(workspace / "encoder.safetensors"), workers=0,
                             device="cpu"), note=said.append)
    assert said[-1] == ("no ONNX graph of this encoder can be kept, so searching will load torch: "
                        "no such operator and so on")
    assert sorted(os.listdir(places.encoders)) == [f"{make_encoder().fingerprint()}.safetensors"]


def test_a_graph_that_gives_something_else_is_not_kept(make_encoder, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(graph_export, "LEAST_COSINE", 2.0)
    keep_graph(tmp_path / "g.onnx", make_encoder(), said.append)
    assert "features differ from torch's" in said[0]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_costs_the_graph_alone(ours, make_encoder, monkeypatch):
    def refuse(*arguments, **more):
        raise OSError(errno.EROFS, "Read-only file system")

    root, graph = ours
    description_file(graph).write_text("{")
    monkeypatch.setattr(graph_export, "replacing", refuse)
    monkeypatch.setattr(pathlib.Path, "unlink", refuse)
    assert engine(root) == "_TorchEncoder"


def test_info_of_a_file_loads_what_it_needs(ours):
    root, _ = ours
    for name in ("encoder.safetensors", "embeddings.h5", "embeddings.faiss"):
        script = ("import sys\nfrom mocoembed.cli.main import main\n"
                  "try:\n    main(sys.argv[1:])\nexcept SystemExit as leaving:\n    assert not leaving.code\n"
                  "assert not {'torch', 'faiss', 'onnxruntime'} & set(sys.modules)\n")
        subprocess.run([sys.executable, "-c", script, "info", str(root / name)], check=True, capture_output=True)
