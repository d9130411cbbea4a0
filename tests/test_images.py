"""Finding images in any folder, and the right pixels from odd files."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from mocoembed.data.decode import EncodedImage, UnreadableImage, read_file
from mocoembed.data.images import PathTable, scan
from mocoembed.errors import CollectionError, UsageError


def touch(root, *names):
    for name in names:
        path = os.path.join(os.fsencode(root), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(b"x")


def encoded(image, form="PNG", **more):
    buffer = io.BytesIO()
    image.save(buffer, form, **more)
    return buffer.getvalue()


def pixels(data, shrink=1.0):
    return np.asarray(EncodedImage(data).rgb(shrink))


def test_lists_any_depth_sorted_and_counts_what_it_leaves_out(tmp_path):
    touch(tmp_path, "b/2.jpg", "b/1.PNG", "a/deep/er/3.webp", "top.jpeg", "notes.txt", ".hidden.jpg", "a/.git/4.jpg")
    listing = scan(tmp_path)
    assert [listing.paths[i] for i in range(len(listing))] == [b"a/deep/er/3.webp", b"b/1.PNG", b"b/2.jpg", b"top.jpeg"]
    assert listing.skipped == {".txt": 1, "hidden": 1}
    assert [listing.label_names[label] for label in listing.labels] == ["er", "b", "b", tmp_path.name]


def test_labels_by_first_folder_or_none(tmp_path):
    touch(tmp_path, "a/deep/1.jpg", "top.jpg")
    first = scan(tmp_path, "first")
    assert first.label_names == ("a",)
    assert first.labels.tolist() == [0, -1]
    assert scan(tmp_path, "none").labels.tolist() == [-1, -1]


def test_follows_links_to_folders_without_circles(tmp_path):
    touch(tmp_path, "a/1.jpg", "elsewhere/2.jpg")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "a" / "linked").symlink_to(tmp_path / "elsewhere")
    listing = scan(tmp_path / "a")
    assert b"linked/2.jpg" in [listing.paths[i] for i in range(len(listing))]
    assert len(listing) < 6


def test_a_link_to_itself_is_listed_and_a_closed_folder_is_named(tmp_path, monkeypatch):
    touch(tmp_path, "a/1.jpg", "closed/2.jpg")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    real = os.scandir

    def scandir(path):
        if path.endswith(b"closed"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    listing = scan(tmp_path)
    assert [listing.paths[i] for i in range(len(listing))] == [b"a/1.jpg", b"loop.jpg"]
    assert listing.closed == (b"closed",)
    with pytest.raises(OSError, match="symbolic links"):
        read_file(listing.full_path(1))


def test_names_are_bytes(tmp_path):
    touch(tmp_path, b"\xff\xfe.jpg", "new\nline.jpg")
    listing = scan(tmp_path)
    assert [read_file(listing.full_path(i))[0] for i in range(2)] == [b"x", b"x"]


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        scan(tmp_path / "nowhere")
    touch(tmp_path, "a.txt")
    (tmp_path / "a.tgz").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"a file that holds no images. Give a folder, a list"):
        scan(tmp_path / "a.tgz")
    with pytest.raises(CollectionError, match=r"no images \(skipped 2 files: 1 .tgz, 1 .txt\)"):
        scan(tmp_path)


def test_digest_and_subset(tmp_path):
    touch(tmp_path, "1.jpg", "2.jpg", "3.jpg")
    whole, part = scan(tmp_path), scan(tmp_path).subset([0, 2])
    assert scan(tmp_path).digest() == whole.digest() != part.digest()
    assert [part.paths[i] for i in range(2)] == [b"1.jpg", b"3.jpg"]


def test_path_table():
    paths = [b"a", b"", b"long/er", b"\xff"]
    table = PathTable(paths)
    assert list(table) == paths
    with pytest.raises(IndexError):
        table[4]


def test_refuses_what_is_not_a_regular_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(UnreadableImage, match="regular"):
        read_file(tmp_path / "pipe.jpg")


def test_devices_and_vanished_files_are_refused(tmp_path):
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    touch(tmp_path, "gone.jpg")
    listing = scan(tmp_path)
    (tmp_path / "gone.jpg").unlink()
    with pytest.raises(FileNotFoundError):
        listing.read(0)
    with pytest.raises(UnreadableImage, match="not a regular file"):
        listing.read(1)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("shrink", [1, 2])
def test_exif_orientation_gives_the_upright_image(orientation, shrink):
    upright = Image.fromarray(np.kron(np.arange(12, dtype=np.uint8).reshape(3, 4) * 20, np.ones((16, 16), np.uint8)))
    undo = {1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
            4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90,
            7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270}[orientation]
    stored = upright if undo is None else upright.transpose(undo)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(stored.convert("RGB"), "JPEG", quality=98, exif=exif)
    image = EncodedImage(data)
    assert (image.width, image.height) == upright.size
    expected = upright.convert("RGB").resize((64 // shrink, 48 // shrink), Image.Resampling.BOX)
    assert np.abs(pixels(data, shrink).astype(int) - np.asarray(expected)).max() <= 6


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunk(png, added, before):
    """The PNG file with a chunk added before its first one of another kind."""
    place = png.index(before) - 4
    return png[:place] + added + png[place:]


@pytest.mark.parametrize("before", [b"IDAT", b"IEND"])
def test_the_size_of_a_png_is_upright_before_it_is_decoded(before):
    stored = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    image = EncodedImage(with_chunk(encoded(stored), chunk(b"eXIf", exif.tobytes()[6:]), before))
    assert (image.width, image.height) == image.reduce(1.0) == (6, 9)
    assert image._image._im is None
    turned = np.asarray(stored.transpose(Image.Transpose.ROTATE_270))
    assert np.array_equal(np.asarray(image.rgb()), turned)
    text = chunk(b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>')
    for place, size in (b"IDAT", (6, 9)), (b"IEND", (9, 6)):
        image = EncodedImage(with_chunk(encoded(stored), text, place))
        assert (image.width, image.height) == image.rgb().size == size


def test_no_png_is_decoded_before_its_memory_is_known(monkeypatch):
    image = EncodedImage(encoded(Image.new("RGB", (64, 64))))
    assert image._image._im is None
    monkeypatch.setattr("mocoembed.data.decode.MOST_MEMORY", 1 << 10)
    with pytest.raises(UnreadableImage, match="64 x 64 pixels"):
        image.rgb()
    assert image._image._im is None


def test_sixteen_bit_grey_is_scaled_not_clipped():
    levels = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    got = pixels(encoded(Image.fromarray(levels)))
    assert np.abs(got[..., 0] - levels / 257).max() <= 1


def test_sixteen_bit_colours_are_scaled_not_clipped():
    levels = np.linspace(0, 65535, 48).astype(">u2").reshape(4, 4, 3)

    rows = b"".join(b"\0" + row.tobytes() for row in levels)
    got = pixels(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0))
                 + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    assert np.abs(got - levels / 257).max() <= 1


def test_transparency_is_laid_over_white():
    red = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    red.putpixel((0, 0), (255, 0, 0, 255))
    red.putpixel((1, 0), (255, 0, 0, 128))
    got = pixels(encoded(red))
    assert got[0, 0].tolist() == [255, 0, 0]
    assert got[0, 1].tolist() == pytest.approx([255, 127, 127], abs=1)
    assert got[3, 3].tolist() == [255, 255, 255]
    palette = Image.new("P", (2, 2), 0)
    palette.putpalette([0, 0, 0, 9, 9, 9])
    assert pixels(encoded(palette, transparency=0)).min() == 255
    assert pixels(encoded(Image.new("LA", (2, 2), (0, 0)))).min() == 255
    grey = encoded(Image.fromarray(np.array([[0, 256, 257]], np.uint16)))
    assert pixels(with_chunk(grey, chunk(b"tRNS", b"\1\0"), b"IDAT"))[0].tolist() == [[0] * 3, [255] * 3, [1] * 3]


def test_other_modes_and_first_frame():
    assert pixels(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"))[0, 0].tolist() == pytest.approx(
        [254, 0, 0], abs=3)
    assert pixels(encoded(Image.new("1", (2, 2), 1))).tolist() == [[[255] * 3] * 2] * 2
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    assert pixels(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))[0, 0].tolist() == [255, 0, 0]


def test_a_large_jpeg_is_decoded_at_the_smallest_scale_that_covers():
    data = encoded(Image.new("RGB", (800, 600), "green"), "JPEG")
    assert EncodedImage(data, full=True).rgb(100).size == (800, 600)
    assert [EncodedImage(data).rgb(shrink).size for shrink in (1, 1.9, 2, 5, 100)] == [
        (800, 600), (800, 600), (400, 300), (200, 150), (100, 75)]


@pytest.mark.parametrize("cut", [10, 100, 400, 700])
def test_a_truncated_image_is_an_error(cut):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8))
    for form in ("JPEG", "PNG"):
        with pytest.raises(Exception, match=r"\w"):
            pixels(encoded(noise, form)[:cut])


def test_refuses_formats_off_the_list_and_bombs():
    for data, start in ((encoded(Image.new("RGB", (8, 8)), "EPS"), "%!PS-Adobe-3.0 "),
                        (b"<!DOCTYPE html><html>", "<!DOCTYPE html>"), (b"\0\0\0\x18ftypmp42", ".*ftypmp42'$")):
        with pytest.raises(Exception, match=f"cannot identify image file, which starts with '{start}"):
            EncodedImage(data)
    with pytest.raises(UnreadableImage, match="take 686 MiB to decode; at most 272 MiB"):
        pixels(encoded(Image.new("1", (12_000, 12_000))))


def test_a_jpeg_in_several_scans_counts_at_full_size():
    """Its coefficients are held whole, whatever scale it is decoded at."""
    image = Image.new("RGB", (1600, 1600))
    files = {name: encoded(image, "JPEG", **more) for name, more in {
        "baseline": {"subsampling": 0}, "progressive": {"subsampling": 0, "progressive": True},
        "4:2:0": {"subsampling": 2, "progressive": True}}.items()}
    bytes_of_scans = {name: EncodedImage(data)._bytes_of_scans() for name, data in files.items()}
    assert bytes_of_scans == {"baseline": 0, "progressive": 6, "4:2:0": 3}
    assert EncodedImage(encoded(image.convert("L"), "JPEG"))._bytes_of_scans() == 0


def test_a_progressive_bomb_is_refused_at_any_scale(monkeypatch):
    monkeypatch.setattr("mocoembed.data.decode.MOST_MEMORY", 4 << 20)
    image = Image.new("RGB", (1600, 1600))
    assert EncodedImage(encoded(image, "JPEG")).rgb(8).size == (200, 200)
    with pytest.raises(UnreadableImage, match=r"\(JPEG, RGB\) take 7 MiB"):
        EncodedImage(encoded(image, "JPEG", progressive=True)).rgb(8)
