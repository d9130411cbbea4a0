"""TIFF files of every layout: the right pixels by plain arithmetic and as OpenCV has them, or a true reason."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image
from tiff_files import CMYK, GREY, GREY_INVERTED, PALETTE, RGB, tiff

from mocoembed.data.decode import EncodedImage
from mocoembed.data.tiff import Tags, TiffImage
from mocoembed.errors import UnreadableImage

HEIGHT, WIDTH = 19, 21
DTYPES = {("u", 8): np.uint8, ("u", 16): np.uint16, ("u", 32): np.uint32, ("i", 8): np.int8, ("i", 16): np.int16,
          ("i", 32): np.int32, ("f", 16): np.float16, ("f", 32): np.float32, ("f", 64): np.float64}
LAYOUTS = [{}, {"segment": (WIDTH, 5)}, {"segment": (16, 16), "tiled": True}]
PACKED = [{}, {"compression": 8}, {"compression": 5}, {"compression": 32773}, {"compression": 34925},
          {"compression": 50000}]


def share(count: int) -> np.ndarray:
    """(h, w, count) in 0..1: different gradients."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH] / np.array([HEIGHT - 1, WIDTH - 1]).reshape(2, 1, 1)
    return np.stack([x, y, (x + y) / 2, 1 - x, x * y], axis=-1)[..., :count]


def samples(count: int, bits: int, kind: str = "u") -> np.ndarray:
    """The gradients as samples of that many bits."""
    if kind == "f":
        return share(count).astype(DTYPES[kind, bits])
    return np.round(share(count) * (2 ** (bits - (kind == "i")) - 1)).astype(np.int64)


def most(bits: int, kind: str) -> float:
    return 1.0 if kind == "f" else 2 ** (bits - (kind == "i")) - 1


def expected(values: np.ndarray, full: float, photometric: int, opacity: int | None = None,
             premultiplied: bool = False) -> np.ndarray:
    """(h, w, 3) in 0..255: what the pixels mean, laid over white."""
    parts = values.astype(float) / full
    colours = {GREY: 1, GREY_INVERTED: 1, RGB: 3, CMYK: 4}[photometric]
    colour = parts[..., :colours]
    if photometric == GREY_INVERTED:
        colour = 1 - colour
    if photometric == CMYK:
        colour = (1 - colour[..., :3]) * (1 - colour[..., 3:])
    colour = np.repeat(colour, 3, axis=2) if colours == 1 else colour
    if opacity is not None:
        alpha = parts[..., opacity:opacity + 1]
        colour = np.minimum(1, (colour if premultiplied else colour * alpha) + 1 - alpha)
    return 255 * colour


def decoded(data: bytes, value_range=()) -> np.ndarray:
    return np.asarray(EncodedImage(data, value_range=value_range).rgb()).astype(float)


def decoded_or_none(data: bytes) -> np.ndarray | None:
    """The pixels; `None` where any `Exception` is raised."""
    try:
        return decoded(data)
    except Exception:
        return None


def by_opencv(data: bytes) -> np.ndarray | None:
    """(h, w, 3) RGB as OpenCV has it; `None` where it refuses the file."""
    cv2 = pytest.importorskip("cv2")
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    return None if image is None else image[..., ::-1].astype(float)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8, 10, 12, 14, 16])
@pytest.mark.parametrize("order", "<>")
def test_grey_and_colours_of_any_number_of_bits(bits, order):
    for photometric, planar, layout in itertools.product((GREY, GREY_INVERTED, RGB), (False, True), LAYOUTS):
        values = samples(3 if photometric == RGB else 1, bits)
        got = decoded(tiff(values, bits, photometric, planar=planar, order=order, **layout))
        assert np.abs(got - expected(values, 2**bits - 1, photometric)).max() <= 1, (photometric, planar, layout)


@pytest.mark.parametrize(("kind", "bits"), DTYPES)
def test_every_kind_of_sample_by_every_compression_and_prediction(kind, bits):
    value_range = (0, most(bits, kind)) if kind == "f" or bits > 16 else ()
    ways = [(packed, 1) for packed in PACKED] + [(PACKED[1], 2), (PACKED[2], 2), (PACKED[5], 2)]
    ways += [(packed, 3) for packed in PACKED[1:3] if kind == "f"]
    for (packed, predictor), order in itertools.product(ways, "<>"):
        for photometric, planar, layout in ((GREY_INVERTED, False, LAYOUTS[1]), (RGB, False, LAYOUTS[2]),
                                            (RGB, True, LAYOUTS[0])):
            values = samples(3 if photometric == RGB else 1, bits, kind)
            data = tiff(values, bits, photometric, kind=kind, order=order, planar=planar, predictor=predictor,
                        **packed, **layout)
            got = decoded(data, value_range)
            assert np.abs(got - expected(values, most(bits, kind), photometric)).max() <= 1, (packed, predictor, order)


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_further_samples_are_opacity_only_where_the_tags_say_so(bits):
    for photometric, planar, order in itertools.product((GREY, RGB), (False, True), "<>"):
        colours = 3 if photometric == RGB else 1
        for extra, opacity in {(): None, (0,): None, (2,): 0, (0, 2): 1, (2, 0): 0}.items():
            values = samples(colours + max(1, len(extra)), bits)
            data = tiff(values, bits, photometric, planar=planar, order=order, extra=extra, segment=(WIDTH, 7))
            wanted = expected(values, 2**bits - 1, photometric, None if opacity is None else colours + opacity)
            assert np.abs(decoded(data) - wanted).max() <= 1.5, (photometric, planar, extra)
        values = samples(colours + 1, bits)
        values[..., :colours] = values[..., :colours] * values[..., colours:] // (2**bits - 1)
        data = tiff(values, bits, photometric, planar=planar, order=order, extra=(1,))
        wanted = expected(values, 2**bits - 1, photometric, colours, premultiplied=True)
        assert np.abs(decoded(data) - wanted).max() <= 1.5


def test_a_palette_has_its_colours_even_if_they_were_not_shifted():
    random = np.random.default_rng(0)
    for bits, planar, opacity in itertools.product((1, 2, 4, 8), (False, True), (False, True)):
        table = random.integers(0, 256, (1 << bits, 3))
        table[0] = 255
        index = random.integers(0, 1 << bits, (HEIGHT, WIDTH, 1 + opacity))
        wanted = table[index[..., 0]]
        if opacity:
            alpha = index[..., 1:] / ((1 << bits) - 1)
            wanted = wanted * alpha + 255 * (1 - alpha)
        for factor in (1, 256, 257):
            entries = ("H", (table.T * factor).reshape(-1).tolist())
            data = tiff(index, bits, PALETTE, planar=planar, extra=(2,) * opacity, more={320: entries})
            assert np.abs(decoded(data) - wanted).max() <= 1


@pytest.mark.parametrize("bits", [8, 16])
def test_cmyk(bits):
    for planar, layout in itertools.product((False, True), LAYOUTS):
        values = samples(4, bits)
        got = decoded(tiff(values, bits, CMYK, planar=planar, **layout))
        assert np.abs(got - expected(values, 2**bits - 1, CMYK)).max() <= 2


@pytest.mark.parametrize("bits", [1, 4, 8, 12, 16])
def test_the_first_pixel_may_be_in_the_lowest_bit(bits):
    values = samples(3, bits)
    for packed in ({}, {"compression": 8}):
        got = decoded(tiff(values, bits, RGB, fill_order=2, **packed))
        assert np.abs(got - expected(values, 2**bits - 1, RGB)).max() <= 1


@pytest.mark.parametrize(("bits", "photometric"), [(8, RGB), (12, GREY), (16, RGB)])
def test_big_tiff(bits, photometric):
    values = samples(3 if photometric == RGB else 1, bits)
    for order in "<>":
        got = decoded(tiff(values, bits, photometric, order=order, big=True, segment=(WIDTH, 4)))
        assert np.abs(got - expected(values, 2**bits - 1, photometric)).max() <= 1


def test_opencv_has_the_same_pixels():
    compared = 0
    for bits, photometric, planar, order, layout, packed, further in itertools.product(
            (8, 16), (GREY, GREY_INVERTED, RGB), (False, True), "<>", LAYOUTS, PACKED[:3], (0, 1)):
        values = samples((3 if photometric == RGB else 1) + further, bits)
        data = tiff(values, bits, photometric, planar=planar, order=order, extra=(0,) * further, **layout, **packed)
        theirs = by_opencv(data)
        if theirs is None or (photometric != RGB and (further or (bits == 16 and "tiled" in layout))):
            continue  # a grey with another sample comes out as colours, tiles of a 16-bit grey at the wrong places
        assert np.abs(decoded(data) - theirs).max() <= 1, (bits, photometric, planar, order, layout, packed, further)
        compared += 1
    assert compared > 200


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("how", [{}, {"compression": 5}, {"planar": True}])
def test_orientation_is_applied_once(orientation, how):
    values = samples(3, 8)
    image = EncodedImage(tiff(values, 8, RGB, more={274: ("H", [orientation])}, **how))
    turn = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}[orientation]  # as in PIL.Image.Transpose
    upright = Image.fromarray(values.astype(np.uint8))
    upright = upright if turn is None else upright.transpose(Image.Transpose(turn))
    assert (image.width, image.height) == upright.size
    assert np.array_equal(np.asarray(image.rgb()), np.asarray(upright))


def test_lab_is_left_to_pillow():
    image = Image.fromarray(samples(3, 8).astype(np.uint8), "LAB")
    for how in ({}, {"compression": 5}):
        data = tiff(np.asarray(image).view(np.int8).astype(int) % 256, 8, 8, **how)
        assert np.abs(decoded(data) - np.asarray(image.convert("RGB"))).max() <= 1


def test_jpeg_and_fax_pages_are_left_to_pillow():
    image = Image.fromarray(samples(3, 8).astype(np.uint8)).resize((64, 48))
    for form, mode in (("jpeg", "RGB"), ("group4", "1"), ("group3", "1")):
        buffer = io.BytesIO()
        image.convert(mode).save(buffer, "TIFF", compression=form, tiffinfo={274: 6})
        reader = EncodedImage(buffer.getvalue())
        assert (reader.width, reader.height) == (48, 64)
        wanted = image.convert(mode).convert("RGB").transpose(Image.Transpose.ROTATE_270)
        assert np.abs(np.asarray(reader.rgb()).astype(int) - np.asarray(wanted)).mean() < 4


@pytest.mark.parametrize(("change", "reason"), [
    ({262: ("H", [9])}, "PhotometricInterpretation 9"),
    ({262: ("H", [8]), 258: ("H", [16] * 3)}, "side by side"), ({259: ("H", [34887])}, "compression 34887"),
    ({258: ("H", [8, 8, 16])}, "different kinds"), ({339: ("H", [6] * 3)}, "SampleFormat 6"),
    ({258: ("H", [24] * 3)}, "24-bit samples"), ({262: ("H", [6])}, "YCbCr"), ({277: ("H", [2])}, "2 samples"),
    ({259: ("H", [7]), 258: ("H", [12] * 3)}, "12-bit JPEG"), ({278: ("I", [0])}, "in pieces of"),
    ({259: ("H", [5]), 317: ("H", [3])}, "predictor 3"), ({256: ("I", [0])}, "0 x 19 pixels"),
    ({257: ("I", [4000])}, "truncated"), ({273: ("I", [1 << 30])}, "truncated"),
    ({322: ("I", [1]), 323: ("I", [1]), 256: ("I", [1 << 14]), 257: ("I", [1 << 14])}, "strips or tiles; at most")])
def test_what_is_refused_is_refused_for_the_true_reason(change, reason):
    with pytest.raises(UnreadableImage, match=reason):
        decoded(tiff(samples(3, 8), 8, RGB, extra=(0,) if 277 not in change else (), more=change))


def test_any_cut_and_any_flipped_byte_is_an_error_or_a_whole_image():
    random = np.random.default_rng(2)
    for how in ({}, {"compression": 8, "predictor": 2}, {"compression": 5, "segment": (16, 16), "tiled": True}):
        data = tiff(samples(3, 16), 16, RGB, planar=True, **how)
        whole = decoded(data)
        for cut in range(0, len(data), 7):
            got = decoded_or_none(data[:cut])
            assert got is None or (cut > 0.9 * len(data) and np.array_equal(got, whole))  # what is cut is no pixel's
        for place in random.integers(0, len(data), 150):
            damaged = bytearray(data)
            damaged[place] ^= int(random.integers(1, 256))
            got = decoded_or_none(bytes(damaged))
            assert got is None or got.shape[2] == 3


def test_memory_is_that_of_a_strip_and_the_result(monkeypatch):
    values = samples(3, 16)
    for how, each in (({}, 4), ({"compression": 5}, 4 + 12),
                      ({"compression": 8, "segment": (WIDTH, 1)}, 4 + 12 / HEIGHT)):
        data = tiff(values, 16, RGB, **how)
        strip = Tags(data).all(279).max() / (WIDTH * HEIGHT) if how else 0
        assert TiffImage(data, Tags(data), ()).bytes_a_pixel() == pytest.approx(each + strip, rel=0.01)
    bomb = tiff(np.zeros((1, 1, 3)), 16, RGB, compression=8, more={256: ("I", [30_000]), 257: ("I", [30_000]),
                                                                   278: ("I", [30_000])})
    with pytest.raises(UnreadableImage, match=r"16-bit RGB.* at most 272 MiB"):
        decoded(bomb)
