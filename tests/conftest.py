"""What several tests need: little images, a little encoder, a workspace with their embeddings.

Session-scoped fixtures are for reading only; `fresh_workspace` is a copy to write into.
"""

import dataclasses
import pathlib
import shutil

import numpy as np
import pytest
import torch
from embed_runs import MANY, Work, embed, files_of, lay, put_image, whole
from PIL import Image

from mocoembed.config import EmbedConfig, IndexConfig
from mocoembed.data.evaluation import EvaluationTransform
from mocoembed.data.facts import FACTS
from mocoembed.data.images import scan
from mocoembed.embed.extract import embed_images
from mocoembed.embed.store_writer import Settings, write_embeddings
from mocoembed.model.encoder import Encoder, EncoderSpec
from mocoembed.model.encoder_file import FrozenEncoder, save_encoder, tool_provenance
from mocoembed.recipes import IMAGENET_MEAN, IMAGENET_STD
from mocoembed.workspace import Workspace

pytest_plugins = ["page"]  # the page in a browser

CLASSES = ("blue", "green", "red")
PER_CLASS = 8

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_workspace_from_outside(monkeypatch):
    monkeypatch.delenv("MOCOEMBED_WORKSPACE", raising=False)


def _image(seed: int, channel: int) -> Image.Image:
    """Coarse noise of one colour, on a canvas whose size depends on the seed."""
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 120, (6, 6, 3), np.uint8)
    pixels[..., channel] += 130
    return Image.fromarray(pixels).resize((40 + seed % 3 * 8, 40), Image.Resampling.BICUBIC)


@pytest.fixture(scope="session")
def make_images():
    """`make_images(folder, per_class=8, seed=0)` fills `folder/<class>/` with images, JPEG and PNG in turn."""
    def make(folder, per_class: int = PER_CLASS, seed: int = 0) -> pathlib.Path:
        for channel, name in enumerate(reversed(CLASSES)):
            (pathlib.Path(folder) / name).mkdir(parents=True, exist_ok=True)
            for i in range(per_class):
                path = pathlib.Path(folder) / name / f"{i:03d}.{'jpg' if i % 2 else 'png'}"
                _image(1000 * seed + 100 * channel + i, channel).save(path)
        return pathlib.Path(folder)

    return make


@pytest.fixture(scope="session")
def make_encoder():
    """`make_encoder(seed=0)` gives an untrained `FrozenEncoder`: 64 features, 16 projected, images of 32 pixels."""
    def make(seed: int = 0) -> FrozenEncoder:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            encoder = Encoder(EncoderSpec("resnet18", 0.125, "3x3s2", "mlp", 16))
        transform = EvaluationTransform.of(32, IMAGENET_MEAN, IMAGENET_STD)
        return FrozenEncoder(encoder.eval().requires_grad_(False), transform,
                             {"recipe": "small", "epochs": 0, **tool_provenance()})

    return make


@pytest.fixture(scope="session")
def images(tmp_path_factory, make_images) -> pathlib.Path:
    """24 images in the folders blue, green and red."""
    return make_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def workspace(tmp_path_factory, make_encoder, images) -> pathlib.Path:
    """A workspace with `encoder.safetensors` (also under its fingerprint) and `embeddings.h5` of `images`."""
    root = tmp_path_factory.mktemp("workspace")
    frozen, places = make_encoder(), Workspace(root)
    save_encoder(places.newest_encoder, frozen)
    save_encoder(places.encoder_of(frozen.fingerprint()), frozen)
    embed_images(EmbedConfig(str(images), workspace=str(root), workers=0, device="cpu"))
    return root


@pytest.fixture(scope="session")
def indexed_workspace(tmp_path_factory, workspace) -> pathlib.Path:
    """A copy of `workspace` with `embeddings.faiss`."""
    from mocoembed.search.build import build_index

    root = pathlib.Path(shutil.copytree(workspace, tmp_path_factory.mktemp("indexed") / "workspace"))
    build_index(IndexConfig(workspace=str(root)))
    return root


@pytest.fixture
def make_embeddings(tmp_path):
    """`make_embeddings(name, vectors, classes)` writes `<tmp_path>/<name>.h5` with vectors made up; its path.

    `classes` has one letter for each vector; those of class `?` are unlabelled. There are no images.
    """
    def make(name: str, vectors, classes: str, *, fingerprint="f" * 64, features="backbone", normalized=False) -> str:
        folder = tmp_path / f"{name}-images"
        for row, label in enumerate(classes):
            (folder / label).mkdir(parents=True, exist_ok=True)
            (folder / label / f"{row:04d}.png").touch()
        listing = scan(folder)
        order = [int(listing.paths[row][-8:-4]) for row in range(len(listing))]
        if "?" in listing.label_names:
            unknown = listing.labels == listing.label_names.index("?")
            listing = dataclasses.replace(listing, labels=np.where(unknown, -1, listing.labels).astype(np.int32))
        vectors = np.asarray(vectors, np.float32)[order]
        settings = Settings({"fingerprint": fingerprint, "provenance": {"recipe": "none"}}, features, normalized,
                            vectors.shape[1], "fp32", "parent")
        write_embeddings(tmp_path / f"{name}.h5", listing, settings, np.ones(len(listing), bool),
                         np.zeros(len(listing), FACTS), [vectors], [])
        return str(tmp_path / f"{name}.h5")

    return make


@pytest.fixture
def fresh_workspace(tmp_path, workspace) -> pathlib.Path:
    """A copy of `workspace` that a test may change."""
    return pathlib.Path(shutil.copytree(workspace, tmp_path / "workspace"))


@pytest.fixture
def run_cli(capsys):
    """`run_cli(*arguments)` runs the command line in this process: (exit status, standard output, standard error)."""
    from mocoembed.cli.main import main

    def run(*arguments) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as leaving:
            main([str(argument) for argument in arguments])
        return int(leaving.value.code or 0), *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def encoder_files(tmp_path_factory, make_encoder) -> dict[str, bytes]:
    """The files of a workspace that has an encoder and nothing else."""
    root = tmp_path_factory.mktemp("encoder")
    save_encoder(root / "encoder.safetensors", make_encoder())
    return files_of(root)


@pytest.fixture(scope="session")
def first(tmp_path_factory, encoder_files) -> Work:
    """To embed a folder of 13 images, of which two have equal bytes, and a broken one."""
    root = tmp_path_factory.mktemp("first")
    for i in range(12):
        put_image(root / "images" / "ab"[i % 2] / f"{i:02}.png", i)
    shutil.copy(root / "images" / "a" / "00.png", root / "images" / "b" / "copy.png")
    (root / "images" / "b" / "broken.jpg").write_bytes(b"no image")
    work = Work(root / "images", encoder_files, {})
    return dataclasses.replace(work, after=whole(work, root / "ws"))


@pytest.fixture(scope="session")
def second(tmp_path_factory, encoder_files) -> Work:
    """To embed a folder again in which images are new, changed, moved and gone."""
    root = tmp_path_factory.mktemp("second")
    folder = root / "images"
    for i in range(12):
        put_image(folder / "ab"[i % 2] / f"{i:02}.png", i)
    before = whole(Work(folder, encoder_files, {}), root / "before")
    for i in range(20, 26):
        put_image(folder / "c" / f"{i}.png", i)
    put_image(folder / "a" / "00.png", 100)
    (folder / "a" / "02.png").rename(folder / "b" / "moved.png")
    (folder / "b" / "01.png").unlink()
    (folder / "b" / "broken.jpg").write_bytes(b"no image")
    work = Work(folder, before, {})
    return dataclasses.replace(work, after=whole(work, root / "after"))


@pytest.fixture(scope="session")
def many(tmp_path_factory, encoder_files) -> Work:
    """To embed `MANY` images with two workers."""
    root = tmp_path_factory.mktemp("many")
    for i in range(MANY):
        put_image(root / "images" / f"{i % 7}" / f"{i:04}.png", i)
    work = Work(root / "images", encoder_files, {})
    run = embed(work, lay(encoder_files, root / "ws")).go()
    assert run.wait() == 0, run.stderr
    return dataclasses.replace(work, after=files_of(root / "ws"))


@pytest.fixture(params=["first", "second"])
def work(request) -> Work:
    """A first embedding and one of a changed folder, in turn."""
    return request.getfixturevalue(request.param)
