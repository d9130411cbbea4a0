"""Thumbnails: what is kept in memory, what in files, and that neither outlives its image."""

import io
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from mocoembed.config import EmbedConfig, ServeConfig
from mocoembed.data.thumbnail import jpeg
from mocoembed.embed.extract import embed_images
from mocoembed.serve import thumbnails as module
from mocoembed.serve.answers import Refusal
from mocoembed.serve.following import Following
from mocoembed.serve.thumbnail_files import ThumbnailFiles
from mocoembed.serve.thumbnails import Thumbnails


@pytest.fixture(scope="module")
def place(tmp_path_factory, workspace):
    """A workspace of a large image and a small one, `photos` beside it."""
    root = tmp_path_factory.mktemp("large")
    (root / "photos").mkdir()
    coarse = np.random.default_rng(0).integers(0, 255, (20, 25, 3), np.uint8)
    Image.fromarray(coarse).resize((2500, 2000)).save(root / "photos" / "large.jpg")
    Image.fromarray(coarse).resize((250, 200)).save(root / "photos" / "small.jpg")
    shutil.copytree(workspace, root / "ws")
    embed_images(EmbedConfig(str(root / "photos"), workspace=str(root / "ws"), workers=0, device="cpu", fresh=True))
    return root


@pytest.fixture
def made(place, tmp_path, monkeypatch):
    """The collection with copies of its photos, their folder, and the rows that were decoded."""
    shutil.copytree(place / "photos", tmp_path / "photos")
    following = Following(ServeConfig(workspace=str(place / "ws"), root=str(tmp_path / "photos")), lambda text: None)
    rows, decode = [], module.shown
    monkeypatch.setattr(module, "shown", lambda collection, row: rows.append(row) or decode(collection, row))
    yield following.current, tmp_path / "photos", rows
    following.close()


def test_files_are_used_for_large_images_only(made, tmp_path):
    collection, _, rows = made
    first = [Thumbnails(files=ThumbnailFiles(tmp_path / "cache")).get(collection, row) for row in (0, 1)]
    again = [Thumbnails(files=ThumbnailFiles(tmp_path / "cache")).get(collection, row) for row in (0, 1)]
    assert first == again
    assert rows == [0, 1, 1]
    assert Image.open(io.BytesIO(first[0])).size == (320, 256)
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_file_does_not_outlive_its_image(made, tmp_path):
    collection, photos, rows = made
    files = ThumbnailFiles(tmp_path / "cache")
    kept = Thumbnails(files=files)
    data = kept.get(collection, 0)
    status = os.stat(photos / "large.jpg")
    (photos / "large.jpg").rename(tmp_path / "away.jpg")
    for thumbnails in (kept, Thumbnails(files=files)):
        with pytest.raises(Refusal, match="gone"):
            thumbnails.get(collection, 0)
    Image.new("RGB", (2500, 2000)).save(photos / "large.jpg")
    for thumbnails in (kept, Thumbnails(files=files)):
        with pytest.raises(Refusal, match="gone"):
            thumbnails.get(collection, 0)
    os.replace(tmp_path / "away.jpg", photos / "large.jpg")
    os.utime(photos / "large.jpg", ns=(0, status.st_mtime_ns + 1))  # the same bytes at another time
    assert Thumbnails(files=files).get(collection, 0) == data
    assert rows[-1] == 0


def test_damaged_files_and_disks_that_cannot_be_written_to_cost_nothing(made, tmp_path):
    collection, _, _ = made
    files = ThumbnailFiles(tmp_path / "cache")
    data = Thumbnails(files=files).get(collection, 0)
    (path,) = (tmp_path / "cache").iterdir()
    path.write_bytes(data[:-9])
    assert Thumbnails(files=files).get(collection, 0) == data
    (tmp_path / "taken").write_bytes(b"a file")
    assert Thumbnails(files=ThumbnailFiles(tmp_path / "taken")).get(collection, 0) == data


def test_the_least_lately_used_files_are_deleted(tmp_path, monkeypatch):
    monkeypatch.setattr("mocoembed.serve.thumbnail_files.LOOKED_AFTER", 2)
    files, data = ThumbnailFiles(tmp_path, most=1000), b"\xff\xd8" + bytes(196) + b"\xff\xd9"
    for number in range(9):
        files.put(f"{number}", data)
        os.utime(tmp_path / f"{number}.jpg", ns=(number, number))
        files.get("0")
    names = {path.stem for path in tmp_path.iterdir()}
    assert {"0", "7", "8"} <= names
    assert len(names) <= 6


def test_memory_is_limited(made, tmp_path):
    collection, _, rows = made
    thumbnails = Thumbnails(most=1, files=ThumbnailFiles(tmp_path / "cache"))
    thumbnails.get(collection, 1)
    thumbnails.get(collection, 1)
    assert rows == [1, 1]
    assert not thumbnails._kept
    assert thumbnails._size == 0


@pytest.mark.parametrize(("size", "side", "expected"), [
    ((640, 480), 320, (320, 240)), ((100, 50), 320, (100, 50)), ((3, 2000), 320, (1, 320)),
    ((5000, 40), 2048, (2048, 16)), ((1, 1), 16, (1, 1))])
def test_sizes(size, side, expected):
    data = io.BytesIO()
    Image.new("RGB", size, "red").save(data, "PNG")
    assert Image.open(io.BytesIO(jpeg(data.getvalue(), side))).size == expected
