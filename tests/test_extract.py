"""Embedding a folder: whole, the same however it was cut up, never over somebody else's results."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from mocoembed.config import EmbedConfig
from mocoembed.embed.extract import embed_images
from mocoembed.embed.store import EmbeddingFile
from mocoembed.errors import CollectionError, FormatError, Interrupted, LockedError, MismatchError, UsageError
from mocoembed.files import locked
from mocoembed.model.encoder_file import save_encoder
from mocoembed.workspace import Workspace


@pytest.fixture
def embed(tmp_path, make_encoder):
    """`embed(folder, progress=None, **settings)` in a workspace that has an encoder."""
    save_encoder(Workspace(tmp_path / "ws").newest_encoder, make_encoder())

    def run(folder, progress=None, **values):
        config = EmbedConfig(str(folder), **{"workspace": str(tmp_path / "ws"), "workers": 0, "device": "cpu",
                                             "batch_size": 5, **values})
        return embed_images(config, progress or (lambda done, total: None))

    return run


def test_every_image_is_embedded_or_reported(embed, tmp_path, make_images):
    folder = make_images(tmp_path / "p")
    (folder / "blue" / "text.jpg").write_text("not an image")
    (folder / "red" / "empty.png").write_bytes(b"")
    os.mkfifo(folder / "red" / "pipe.png")
    (folder / "notes.txt").write_text("left out")
    result = embed(folder)
    assert (result.listed, result.embedded, result.skipped) == (27, 24, {".txt": 1})
    assert [(one.path, one.error) for one in result.failed] == [
        (b"blue/text.jpg", "UnidentifiedImageError"), (b"red/empty.png", "UnreadableImage"),
        (b"red/pipe.png", "UnreadableImage")]
    with EmbeddingFile(result.path) as file:
        assert len(file) == 24
        assert file.failed() == result.failed
        assert [file.label_names[label] for label in file.labels()] == ["blue"] * 8 + ["green"] * 8 + ["red"] * 8
        np.testing.assert_allclose(np.linalg.norm(file.embeddings(), axis=1), 1, atol=1e-6)
        file.verify()
    assert not list(result.path.parent.glob("*.work"))


def test_the_file_does_not_depend_on_workers(embed, images, tmp_path):
    embed(images, output=str(tmp_path / "a.h5"))
    embed(images, output=str(tmp_path / "b.h5"), workers=2)
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_a_stopped_run_goes_on_to_the_same_bytes(embed, images, tmp_path):
    whole = embed(images, output=str(tmp_path / "whole.h5"))

    def stop(done, total):
        if done == 10:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match=r"Stopped after 15 of 24 images; they are kept.") as stopped:
        embed(images, stop)
    assert stopped.value.status == 130
    result = embed(images)
    assert result.resumed_from == 15
    assert result.path.read_bytes() == whole.path.read_bytes()


@pytest.mark.parametrize("pause", [0.0, 0.05])
def test_kill_9_loses_nothing_committed(embed, tmp_path, make_images, pause):
    folder = make_images(tmp_path / "many", per_class=200)
    whole = embed(folder, output=str(tmp_path / "whole.h5"), batch_size=4)
    script = ("import sys; from mocoembed.embed import extract, fill; fill.COMMIT_IMAGES = 4\n"
              "from mocoembed.config import EmbedConfig\n"
              "extract.embed_images(EmbedConfig(sys.argv[1], workspace=sys.argv[2], workers=0, device='cpu', "
              "batch_size=4), lambda done, total: print(done, flush=True))")
    child = subprocess.Popen([sys.executable, "-c", script, str(folder), str(tmp_path / "ws")],
                             stdout=subprocess.PIPE, text=True)
    for line in child.stdout:
        if int(line) >= 40:
            time.sleep(pause)
            child.kill()
            break
    child.wait()
    child.stdout.close()
    assert not (tmp_path / "ws" / "embeddings.h5").exists()
    result = embed(folder, batch_size=4)
    assert 40 - 2 * 4 <= result.resumed_from < 600  # two batches may not have been written
    assert result.path.read_bytes() == whole.path.read_bytes()


def test_other_folders_and_settings_never_replace_a_file_unasked(embed, images, tmp_path, make_images):
    first = embed(images)
    before = first.path.read_bytes()
    other = make_images(tmp_path / "other", seed=1)
    for folder, values, what in [(other, {}, "collection"), (images, {"features": "projection"}, "features"),
                                 (images, {"normalize": False}, "normalize"),
                                 (images, {"precision": "bf16"}, "precision"),
                                 (images, {"labels": "none"}, "labels"),
                                 (images, {"full_decode": True}, "full decode"),
                                 (images, {"value_range": (0.0, 4095.0)}, "value range")]:
        with pytest.raises(MismatchError, match=f"another {what}.*--fresh"):
            embed(folder, **values)
    assert first.path.read_bytes() == before
    assert embed(images).path.read_bytes() == before
    assert embed(other, fresh=True).embedded == 24


def test_a_file_that_is_not_ours_is_never_replaced(embed, images, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    for fresh in (False, True):
        with pytest.raises(FormatError, match="not an embeddings file"):
            embed(images, output=str(tmp_path / "thesis.txt"), fresh=fresh)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_a_vector_that_is_not_finite_is_a_failure(embed, images, tmp_path, make_encoder):
    broken = make_encoder()
    broken.encoder.backbone.layer4[1].bn2.bias[3] = float("inf")
    save_encoder(tmp_path / "broken.safetensors", broken)
    with pytest.raises(CollectionError, match="the first one: the vector is not finite"):
        embed(images, encoder=str(tmp_path / "broken.safetensors"))


def test_another_encoder_is_noticed(embed, images, tmp_path, make_encoder):
    embed(images)
    save_encoder(tmp_path / "other.safetensors", make_encoder(seed=1))
    with pytest.raises(MismatchError, match="another encoder"):
        embed(images, encoder=str(tmp_path / "other.safetensors"))


def test_an_encoder_from_elsewhere_is_kept_for_searching(embed, images, tmp_path, make_encoder):
    frozen = make_encoder(seed=2)
    save_encoder(tmp_path / "other.safetensors", frozen)
    embed(images, encoder=str(tmp_path / "other.safetensors"))
    assert Workspace(tmp_path / "ws").encoder_of(frozen.fingerprint()).exists()


def test_one_writer_at_a_time(embed, images, tmp_path):
    with locked(tmp_path / "ws" / ".embeddings.h5.lock", "x"), pytest.raises(LockedError, match=r"h5 is being written"):
        embed(images)


def test_nothing_readable_publishes_nothing(embed, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.jpg").write_text("x")
    with pytest.raises(CollectionError, match="None of the 1 images can be read"):
        embed(tmp_path / "bad")
    assert [path.name for path in (tmp_path / "ws").iterdir()] == ["encoder.safetensors"]


def test_missing_encoder_and_folder(embed, images, tmp_path):
    with pytest.raises(UsageError, match=r"encoder.*does not exist. Make one with: mocoembed pretrain"):
        embed(images, encoder=str(tmp_path / "no.safetensors"))
    with pytest.raises(UsageError, match="does not exist"):
        embed(tmp_path / "nowhere")
