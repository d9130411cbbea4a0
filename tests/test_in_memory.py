"""`load_encoder(...).embed(...)`: images that are in memory."""

import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from test_column import blocks

import mocoembed
from mocoembed.embed import in_memory
from mocoembed.embed.store import EmbeddingFile
from mocoembed.errors import CollectionError, UsageError
from mocoembed.model.encoder_file import save_encoder
from mocoembed.model.encoder_metadata import read_metadata


def load_fingerprint(workspace):
    return read_metadata(workspace / "encoder.safetensors")["fingerprint"]


@pytest.fixture(scope="module")
def encoder(workspace):
    return mocoembed.load_encoder(workspace=str(workspace), device="cpu")


def test_every_form_of_an_image_has_the_vector_of_its_file(encoder, workspace):
    with EmbeddingFile(workspace / "embeddings.h5") as file:
        paths, stored = [file.full_path(row).decode() for row in range(len(file))], file.embeddings()
    assert (encoder.fingerprint, encoder.dimension) == (load_fingerprint(workspace), stored.shape[1])
    arrays = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    for images in (paths, [pathlib.Path(path) for path in paths], [pathlib.Path(path).read_bytes() for path in paths],
                   [Image.open(path) for path in paths], arrays, (array for array in arrays)):
        vectors = encoder.embed(images)
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(vectors, stored, atol=1e-5)
    one = encoder.embed(paths[3])
    assert one.shape == (encoder.dimension,)
    np.testing.assert_allclose(one, stored[3], atol=1e-5)
    np.testing.assert_allclose(encoder.embed(arrays[3]), stored[3], atol=1e-5)
    np.testing.assert_allclose(encoder.embed(np.stack([arrays[3]] * 2)), stored[[3, 3]], atol=1e-5)


def test_a_generator_is_embedded_in_batches(encoder, monkeypatch):
    monkeypatch.setattr(in_memory, "BATCH", 2)
    grey = np.arange(40 * 50, dtype=np.uint8).reshape(40, 50)
    vectors = encoder.embed(grey for _ in range(5))
    np.testing.assert_allclose(vectors, np.tile(encoder.embed(np.dstack([grey] * 3)), (5, 1)), atol=1e-6)
    assert encoder.embed([]).shape == (0, encoder.dimension)


def test_pil_images_are_turned_and_laid_over_white(encoder, tmp_path):
    random = np.random.default_rng(0)
    image = Image.fromarray(random.integers(0, 255, (6, 8, 3), np.uint8)).resize((80, 60))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_allclose(encoder.embed(Image.open(tmp_path / "turned.png")),
                               encoder.embed(tmp_path / "turned.png"), atol=1e-6)
    clear = image.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(image.size))
    clear.save(tmp_path / "clear.png")
    expected = encoder.embed(tmp_path / "clear.png")
    np.testing.assert_allclose(encoder.embed(clear), expected, atol=1e-6)
    np.testing.assert_allclose(encoder.embed(np.asarray(clear)), expected, atol=1e-6)


def test_settings_are_those_of_embed(workspace):
    projected = mocoembed.load_encoder(workspace / "encoder.safetensors", features="projection", normalize=False)
    image = np.full((40, 40, 3), 90, np.uint8)
    vector = projected.embed(image)
    assert vector.shape == (projected.dimension,) == (16,)
    assert abs(np.linalg.norm(vector) - 1) > 1e-3


@pytest.mark.parametrize(("image", "error", "said"), [
    (b"no image", CollectionError, "Image 1 cannot be read: .* image file, which starts with 'no image'$"),
    ("nowhere.jpg", CollectionError, r"Image 1 \('nowhere.jpg'\) cannot be read: No such file or directory$"),
    (np.zeros((4, 4, 3)), UsageError, r"Image 1: an array of float64 and shape \(4, 4, 3\)"),
    (np.zeros((4, 4, 5), np.uint8), UsageError, r"Image 1: an array of uint8 and shape \(4, 4, 5\)"),
    (Image.new("I;16", (4, 4)), UsageError, "Image 1: its mode is I;16"),
    (None, UsageError, "Image 1: not an image, but of type NoneType"),
])
def test_what_is_no_image_is_named_by_its_position(encoder, image, error, said):
    with pytest.raises(error, match=said):
        encoder.embed([np.zeros((8, 8, 3), np.uint8), image])


def test_wrong_calls(encoder, workspace):
    with pytest.raises(UsageError, match="Not an image, but of type int"):
        encoder.embed(7)
    with pytest.raises(UsageError, match="features 'both'"):
        mocoembed.load_encoder(workspace / "encoder.safetensors", features="both")
    with pytest.raises(UsageError, match="does not exist"):
        mocoembed.load_encoder("nowhere.safetensors")


def test_the_example_runs(workspace, images, tmp_path, monkeypatch, capsys):
    (tmp_path / "mocoembed-workspace").symlink_to(workspace)
    (tmp_path / "photos" / "cats").mkdir(parents=True)
    for number, path in enumerate(sorted(images.rglob("*.jpg"))[:2], 1):
        (tmp_path / "photos" / "cats" / f"{number}.jpg").write_bytes(path.read_bytes())
    monkeypatch.chdir(tmp_path)
    (example,) = [block for block in blocks("python.md") if "load_encoder" in block]
    exec(compile(example, "python.md", "exec"), {})
    assert capsys.readouterr().out.startswith("(2, 64) 64 0.")


# ------------------------------------------------------------------------------------------- on ONNX Runtime


def test_onnx_gives_what_torch_gives(encoder, workspace, images):
    paths = sorted(map(str, images.rglob("*.*")))
    other = mocoembed.load_encoder(workspace=str(workspace), device="onnx")
    assert (other.dimension, other.fingerprint, other.transform) == (
        encoder.dimension, encoder.fingerprint, encoder.transform)
    assert (other.embed(paths) * encoder.embed(paths)).sum(axis=1).min() > 0.9999
    projected = mocoembed.load_encoder(workspace / "encoder.safetensors", workspace=str(workspace), device="onnx",
                                       features="projection", normalize=False)
    assert projected.embed(Image.open(paths[0])).shape == (16,)


def test_onnx_does_not_import_torch(workspace, images):
    script = ("import sys, mocoembed\n"
              "vector = mocoembed.load_encoder(workspace=sys.argv[1], device='onnx').embed(sys.argv[2])\n"
              "assert vector.shape == (64,)\n"
              "assert not {'torch', 'h5py', 'faiss'} & set(sys.modules)\n")
    subprocess.run([sys.executable, "-c", script, str(workspace), str(images / "red" / "000.png")], check=True)


def test_wrong_calls_of_onnx(workspace, make_encoder, tmp_path):
    with pytest.raises(UsageError, match="precision 'bf16': must be fp32 with the device onnx"):
        mocoembed.load_encoder(workspace=str(workspace), device="onnx", precision="bf16")
    save_encoder(tmp_path / "e.safetensors", make_encoder(seed=3))
    with pytest.raises(UsageError, match=r"has no ONNX graph of .*e\.safetensors. Embedding any image makes one"):
        mocoembed.load_encoder(tmp_path / "e.safetensors", workspace=str(workspace), device="onnx")
    graph = next((workspace / "encoders").glob("*.query.onnx"))
    aside = shutil.copytree(workspace / "encoders", tmp_path / "aside")
    beside = mocoembed.load_encoder(aside / f"{graph.name.removesuffix('.query.onnx')}.safetensors",
                                    workspace=str(tmp_path / "none"), device="onnx")
    assert beside.fingerprint == graph.name.removesuffix(".query.onnx")
    with pytest.raises(UsageError, match=r"The encoder 'timm:x' does not exist"):
        mocoembed.load_encoder("timm:x", workspace=str(workspace), device="onnx")
