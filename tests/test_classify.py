"""Classifiers: the file, its graph, and `classify` without torch."""

import csv
import io
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from test_graph import without_torch
from torchless import copied

from mocoembed.cli.main import main
from mocoembed.config import ClassifyConfig, InfoConfig
from mocoembed.errors import CollectionError, FormatError, UsageError
from mocoembed.info import describe
from mocoembed.model.classifier_file import Classifier, load_classifier, save_classifier
from mocoembed.model.embedder import Embedder
from mocoembed.model.encoder_file import load_encoder, save_encoder
from mocoembed.model.graph import CLASSIFIER_KIND, GraphEncoder, description_file
from mocoembed.model.graph_export import keep_classifier_graph
from mocoembed.model.precision import Compute
from mocoembed.search.classify import classify_images
from mocoembed.train.export import open_encoder
from mocoembed.workspace import Workspace

LABELS = ("blue", "green", "red")


@pytest.fixture(scope="module")
def classifier(make_encoder):
    random = torch.Generator().manual_seed(0)
    return Classifier.of(make_encoder(), 5 * torch.randn(3, 64, generator=random), torch.tensor([0.1, 0.0, -0.1]),
                         LABELS, {"seed": 0})


@pytest.fixture(scope="module")
def place(tmp_path_factory, classifier):
    """A workspace with a classifier, as finetune leaves it."""
    places = Workspace(tmp_path_factory.mktemp("classifier"))
    kept = places.classifier_of(classifier.fingerprint)
    save_classifier(kept, classifier)
    keep_classifier_graph(kept.with_suffix(".onnx"), classifier, pytest.fail)
    shutil.copy(kept, places.newest_classifier)
    return places.root


@pytest.fixture
def ours(place, tmp_path):
    """A copy of it that a test may change, and the path of the graph."""
    return copied(place, tmp_path, "classifiers/*.onnx")


def by_hand(classifier, paths):
    """Probabilities (N, C), by the network in training code and softmax."""
    encoder, transform = classifier.frozen.encoder, classifier.frozen.transform
    x = torch.stack([torch.from_numpy(np.array(Image.open(path))) for path in paths])  # of 32 x 32 pixels
    x = x.permute(0, 3, 1, 2).float() / 255
    x = (x - torch.tensor(transform.mean).view(1, 3, 1, 1)) / torch.tensor(transform.std).view(1, 3, 1, 1)
    with torch.inference_mode():
        return (encoder.backbone(x) @ classifier.weight.T + classifier.bias).softmax(dim=1).numpy()


@pytest.fixture
def squares(tmp_path):
    """Five images of 32 x 32 pixels, named in order."""
    random, folder = np.random.default_rng(0), tmp_path / "squares"
    folder.mkdir()
    for i in range(5):
        Image.fromarray(random.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / f"{i}.png")
    return folder


def test_a_file_holds_all_that_a_classifier_is(classifier, tmp_path):
    path = tmp_path / "c.safetensors"
    save_classifier(path, classifier)
    again = load_classifier(path)
    assert again.labels == LABELS
    assert torch.equal(again.weight, classifier.weight)
    assert torch.equal(again.bias, classifier.bias)
    assert again.fingerprint == classifier.fingerprint
    assert again.frozen.encoder.spec.head == "none"
    described = describe(InfoConfig(str(path), verify=True))
    assert described["kind"] == "mocoembed classifier"
    assert described["labels"] == list(LABELS)
    assert described["verified"]


@pytest.mark.parametrize("changed", ["labels", "weight", "bias", "backbone"])
def test_the_fingerprint_covers_all_that_the_answers_depend_on(classifier, make_encoder, changed):
    parts = {"labels": LABELS, "weight": classifier.weight, "bias": classifier.bias, "backbone": classifier.frozen}
    parts[changed] = {"labels": ("blue", "red", "green"), "weight": classifier.weight + 1e-6,
                      "bias": classifier.bias + 1e-6, "backbone": make_encoder(1)}[changed]
    other = Classifier.of(parts["backbone"], parts["weight"], parts["bias"], parts["labels"], {})
    assert other.fingerprint != classifier.fingerprint


def test_every_flipped_bit_is_refused(classifier, tmp_path):
    path = tmp_path / "c.safetensors"
    save_classifier(path, classifier)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for place in np.linspace(header, len(whole) - 1, 12).astype(int):
        harmed = bytearray(whole)
        harmed[place] ^= 1
        path.write_bytes(harmed)
        with pytest.raises(FormatError, match="damaged"):
            load_classifier(path)


def test_the_graph_gives_what_torch_gives(classifier, place):
    (graph,) = (place / "classifiers").glob("*.onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (19, 32, 32, 3), np.uint8)
    found = GraphEncoder(graph, classifier.fingerprint, "logits", False, CLASSIFIER_KIND)(pixels)
    features = Embedder(classifier.frozen, Compute.of("cpu", "fp32"), "backbone", False)(
        torch.from_numpy(pixels).permute(0, 3, 1, 2))
    np.testing.assert_allclose(found, classifier.logits(features), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("with_torch", [True, False])
def test_probabilities_are_the_softmax_of_the_network(classifier, place, squares, with_torch):
    expected = by_hand(classifier, sorted(squares.iterdir()))
    results = list(classify_images(ClassifyConfig((str(squares),), str(place), k=3, device="cpu", torch=with_torch)))
    assert [one.image for one in results] == [str(path) for path in sorted(squares.iterdir())]
    for one, row in zip(results, expected):
        assert [label for label, _ in one.labels] == [LABELS[i] for i in np.argsort(-row)]
        np.testing.assert_allclose([share for _, share in one.labels], np.sort(row)[::-1], atol=2e-3)


def test_formats_say_the_same(run_cli, place, squares):
    arguments = ["classify", squares, "--workspace", place, "-k", 2, "--device", "cpu"]
    status, text, _ = run_cli(*arguments)
    listed = json.loads(run_cli(*arguments, "--format", "json")[1])
    rows = list(csv.DictReader(io.StringIO(run_cli(*arguments, "--format", "csv")[1])))
    assert status == 0
    assert len(listed) == 5
    assert [one["labels"][0]["label"] for one in listed] == [row["label"] for row in rows if row["rank"] == "1"]
    for one, line in zip(listed, text.splitlines()):
        told = "  ".join(f"{label['label']} {label['probability']:.3f}" for label in one["labels"])
        assert line == f"{one['image']}: {told}"


def test_more_labels_than_there_are_is_said(place, squares):
    said = []
    results = list(classify_images(ClassifyConfig((str(squares),), str(place), k=9, device="cpu"), note=said.append))
    assert {len(one.labels) for one in results} == {len(LABELS)}
    assert said == [f"-k 9: the classifier has {len(LABELS)} labels; all of them are given"]


def test_it_runs_without_torch(place, squares):
    done = without_torch("classify", squares, "--workspace", place, "--format", "json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    expected = [one.as_json() for one in classify_images(ClassifyConfig((str(squares),), str(place), device="cpu"))]
    assert json.loads(done.stdout) == expected


def test_unreadable_images_cost_themselves(run_cli, place, squares):
    (squares / "2.png").write_bytes(b"junk")
    (squares / "notes.txt").write_text("no image")
    whole = (squares / "3.png").read_bytes()
    (squares / "3.png").write_bytes(whole[:len(whole) // 2])
    status, out, said = run_cli("classify", squares, "--workspace", place, "--format", "json", "--device", "cpu")
    assert status == 1
    assert [one["image"][-5:] for one in json.loads(out)] == ["0.png", "1.png", "4.png"]
    assert "2.png" in said
    assert "3.png" in said
    assert "2 of 5 images left out" in said
    assert run_cli("classify", squares / "2.png", "--workspace", place)[:2] == (1, "")


@pytest.mark.parametrize("harm", ["graph", "description", "foreign", "missing"])
def test_a_graph_that_is_not_the_classifiers_is_not_used(ours, squares, harm):
    root, graph = ours
    config, said = ClassifyConfig((str(squares),), str(root), k=3, device="cpu"), []
    expected = list(classify_images(config, note=pytest.fail))
    if harm == "graph":
        graph.write_bytes(graph.read_bytes()[:-1])
    elif harm == "description":
        description_file(graph).write_text("{")
    elif harm == "foreign":
        other = json.loads(description_file(graph).read_text())
        description_file(graph).write_text(json.dumps({**other, "labels": ["red", "green", "blue"]}))
    else:
        graph.unlink()
    found = list(classify_images(config, note=said.append))
    assert len(said) == 1
    assert "classified by torch instead" in said[0]
    for one, other in zip(found, expected):
        assert [label for label, _ in one.labels] == [label for label, _ in other.labels]
    assert list(classify_images(config, note=pytest.fail)) == expected  # it was made again


def test_a_stale_graph_beside_a_file_is_not_used(ours, squares, classifier, tmp_path):
    _, graph = ours
    other = Classifier.of(classifier.frozen, -classifier.weight, classifier.bias, LABELS, {})
    path, said = tmp_path / "other.safetensors", []
    save_classifier(path, other)
    for suffix in (".onnx", ".onnx.json"):
        shutil.copy(graph.with_suffix(suffix), path.with_suffix(suffix))
    found = list(classify_images(ClassifyConfig((str(squares),), str(tmp_path / "none"), str(path), device="cpu"),
                                 note=said.append))
    assert "of another classifier" in said[0]
    expected = by_hand(other, sorted(squares.iterdir())).argmax(axis=1)
    assert [one.labels[0][0] for one in found] == [LABELS[i] for i in expected]


@pytest.mark.parametrize(("kind", "message"), [
    ("encoder", "is an encoder, which knows no labels, not a classifier"), ("junk", "is not a classifier"),
    ("embeddings", "is not a classifier"), ("missing", "does not exist"), ("folder", "is a folder"),
    ("foreign", "a safetensors file of another tool")])
def test_a_wrong_file_is_one_clear_line(run_cli, workspace, squares, tmp_path, kind, message):
    import safetensors.torch

    paths = {"encoder": workspace / "encoder.safetensors", "embeddings": workspace / "embeddings.h5",
             "junk": tmp_path / "junk", "missing": tmp_path / "none", "folder": tmp_path, "foreign": tmp_path / "f"}
    paths["junk"].write_bytes(b"junk")
    safetensors.torch.save_file({"x": torch.zeros(1)}, paths["foreign"])
    status, out, said = run_cli("classify", squares, "--classifier", paths[kind])
    assert status in (1, 2)
    assert out == ""
    assert message in said
    assert "mocoembed finetune TRAIN" in said
    assert said.count("\n") == 1


def test_a_newer_format_is_refused(classifier, tmp_path):
    path = tmp_path / "c.safetensors"
    save_classifier(path, classifier)
    data = path.read_bytes().replace(b'\\"format\\": 1', b'\\"format\\": 9')
    path.write_bytes(data)
    with pytest.raises(FormatError, match="classifier format 9"):
        load_classifier(path)


def test_a_classifier_is_no_encoder(classifier, tmp_path, make_encoder):
    path = tmp_path / "c.safetensors"
    save_classifier(path, classifier)
    for opening in (load_encoder, lambda path: open_encoder(str(path), Workspace(tmp_path))):
        with pytest.raises(FormatError, match="is a classifier, not an encoder"):
            opening(path)
    save_encoder(tmp_path / "e.safetensors", make_encoder())
    with pytest.raises(FormatError, match="is an encoder"):
        load_classifier(tmp_path / "e.safetensors")


def test_settings_are_checked():
    with pytest.raises(UsageError, match="-k 0"):
        ClassifyConfig(("x",), k=0)
    with pytest.raises(UsageError, match="No image to classify"):
        ClassifyConfig()


def test_a_single_unreadable_image_is_an_error(place, tmp_path):
    (tmp_path / "x.jpg").write_bytes(b"junk")
    with pytest.raises(CollectionError, match="cannot be read"):
        list(classify_images(ClassifyConfig((str(tmp_path / "x.jpg"),), str(place), device="cpu")))


def test_standard_input(place, squares, monkeypatch, capsysbinary):
    class Input:
        buffer = io.BytesIO((squares / "1.png").read_bytes())

    monkeypatch.setattr("sys.stdin", Input())
    with pytest.raises(SystemExit) as leaving:
        main(["classify", "-", "--workspace", str(place), "--device", "cpu"])
    assert not leaving.value.code
    (expected,) = classify_images(ClassifyConfig((str(squares / "1.png"),), str(place), device="cpu"))
    assert capsysbinary.readouterr().out.decode() == f"-: {expected.labels[0][0]} {expected.labels[0][1]:.3f}\n"
