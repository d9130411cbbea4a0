"""`--value-range` and the warning of dark deep images, from the command line to every file that carries the range."""

import json

import numpy as np
import pytest
from PIL import Image
from tiff_files import GREY, tiff

from mocoembed.config import EmbedConfig, IndexConfig, PretrainConfig
from mocoembed.data import deep as module
from mocoembed.data.decode import EncodedImage
from mocoembed.data.deep import RangeWatch, Scale, Seen, joined
from mocoembed.embed.extract import embed_images
from mocoembed.embed.store import EmbeddingFile
from mocoembed.errors import MismatchError, UnreadableImage, UsageError
from mocoembed.model.encoder_file import load_encoder
from mocoembed.search.build import build_index
from mocoembed.train.loop import pretrain


@pytest.fixture
def dark(tmp_path):
    """12 images of coarse noise in 12 of 16 bits, TIFF and PNG in turn."""
    folder = tmp_path / "dark"
    folder.mkdir()
    for seed in range(12):
        noise = np.random.default_rng(seed).integers(0, 4096, (5, 5), np.uint16).repeat(8, axis=0).repeat(8, axis=1)
        noise[0, :2] = 0, 4095
        Image.fromarray(noise).save(folder / f"{seed:02d}.{'tif' if seed % 2 else 'png'}")
    return folder


@pytest.mark.parametrize(("kind", "bits"), [("u", 8), ("u", 12), ("u", 16), ("i", 8), ("i", 16), ("u", 32), ("i", 32),
                                            ("f", 16), ("f", 32), ("f", 64)])
@pytest.mark.parametrize("value_range", [(0.0, 100.0), (-20.5, 90.25), (30.0, 31.0)])
def test_scaling_is_linear_clipped_and_rounded(kind, bits, value_range):
    random, low, high = np.random.default_rng(0), *value_range
    dtype = f"{kind}{max(8, 1 << (bits - 1).bit_length()) // 8}"
    values = random.uniform(-60 if kind != "u" else 0, 120, 500).astype(dtype)
    got = Scale(kind, bits, value_range)(values.reshape(20, 25))
    for value, scaled in zip(values.tolist(), got.reshape(-1).tolist()):
        wanted = int(255 * (min(max(value, low), high) - low) / (high - low) + 0.5)
        assert scaled == (value if (kind, bits) == ("u", 8) else wanted)


def test_what_is_no_number_counts_as_low_and_infinity_is_clipped():
    values = np.array([[np.nan, np.inf, -np.inf, 1.0, 3.0]], np.float32)
    scale = Scale("f", 32, (1.0, 3.0))
    assert scale(values).tolist() == [[0, 255, 0, 0, 255]]
    assert scale.seen is None
    everything = Scale("f", 32)
    everything(values[:, 3:])
    everything(values[:, :1])
    with pytest.raises(UnreadableImage, match=r"32-bit floating-point pixels \(from 1 to 3\): give --value-ra"):
        everything.require_known()


def test_an_image_of_nothing_but_nan_says_so():
    scale = Scale("f", 32)
    scale(np.full((2, 3), np.nan, np.float32))
    with pytest.raises(UnreadableImage, match=r"32-bit floating-point pixels \(all NaN\): give --value-range LOW,HIGH"):
        scale.require_known()


@pytest.mark.parametrize(("kind", "bits", "low", "reason"), [
    ("f", 32, 0, "32-bit floating-point pixels"), ("f", 16, 0, "16-bit floating-point pixels"),
    ("u", 32, 0, "32-bit integer pixels"), ("i", 32, -3, "32-bit integer pixels"), ("i", 16, -3, "negative pixels"),
    ("i", 8, -3, "negative pixels")])
def test_pixels_without_a_usual_range_name_the_option(kind, bits, low, reason):
    values = np.arange(low, low + 100).reshape(10, 10, 1)
    data = tiff(values, bits, GREY, kind=kind)
    with pytest.raises(UnreadableImage, match=rf"{reason} \(from {low} to {low + 99}\): give --value-range LOW,HIGH"):
        EncodedImage(data).rgb()
    got = np.asarray(EncodedImage(data, value_range=(low, low + 99)).rgb())
    assert (got[0, 0, 0], got[-1, -1, 0]) == (0, 255)


def test_the_warning_comes_once_and_only_for_little_of_the_range():
    for seen, text in {(0, 4095): "deep images use 0..4095 of 0..65535, so they have little contrast: give "
                                  "--value-range 0,4095", (7, 7): "give --value-range 7,8", (0, 8191): "0,8191",
                       (0, 8192): None, (0, 65535): None}.items():
        said = []
        watch = RangeWatch(said.append)
        for _ in range(module.ENOUGH + 5):
            watch.add(Seen.of(*seen, 65535))
            watch.add(None)
        watch.close()
        watch.close()
        assert len(said) == (text is not None)
        assert text is None or text in said[0]
    assert joined([None, Seen(5, 9, 100), Seen(2, 7, 200, 3), None]) == (2, 9, 200, 4, 0)
    assert joined([None]) is None


@pytest.mark.parametrize(("dark", "bright", "warned"), [(3, 0, True), (2, 1, True), (1, 3, True), (1, 4, False)])
def test_images_of_the_full_range_among_dark_ones_do_not_silence_the_warning(dark, bright, warned):
    said: list[str] = []
    watch = RangeWatch(said.append)
    watch.add(joined([Seen.of(0, 65535, 65535)] * bright))
    for seen in [Seen.of(10, 4080, 65535)] * dark:
        watch.add(seen)
    watch.close()
    assert [text.rpartition(" ")[2] for text in said] == ["10,4080"] * warned
    assert ("of the first" in "".join(said)) == (warned and bright > 0)


def test_embed_warns_once_of_dark_images(dark, fresh_workspace, run_cli):
    arguments = ["embed", str(dark), "--workspace", str(fresh_workspace), "--device", "cpu", "--fresh",
                 "--batch-size", "4", "--workers", "2"]
    advice = "deep images use 0..4095 of 0..65535, so they have little contrast: give --value-range 0,4095"
    assert run_cli(*arguments)[2].count(advice) == 1
    status, _, said = run_cli(*arguments, "--value-range", "0,4095")
    assert status == 0
    assert "give --value-range" not in said
    assert "--value-range 0,4095; the encoder's own is none" in said
    told = json.loads(run_cli("info", str(fresh_workspace / "embeddings.h5"), "--json")[1])
    assert told["value_range"] == [0, 4095]
    assert "value_range" not in told["encoder"]["transform"]


def test_another_range_is_another_setting(dark, fresh_workspace):
    config = {"workspace": str(fresh_workspace), "device": "cpu", "workers": 0}
    embed_images(EmbedConfig(str(dark), **config, fresh=True, value_range=(0, 4095)))
    assert embed_images(EmbedConfig(str(dark), **config, value_range=(0, 4095))).counts.unchanged == 12
    with pytest.raises(MismatchError, match="another value range: 0,4095, now none"):
        embed_images(EmbedConfig(str(dark), **config))


@pytest.mark.parametrize("cache", ["none", "ram"])
def test_the_range_goes_from_pretraining_to_the_query(dark, tmp_path, run_cli, cache):
    workspace = str(tmp_path / "ws")
    settings = {"batch_size": 4, "bn_groups": 1, "queue_size": 8, "epochs": 1, "width": 0.125, "image_size": 32,
                "workers": 0, "device": "cpu", "workspace": workspace, "cache": cache}
    dull, bright = (pretrain(PretrainConfig.of("small", str(dark), **settings, value_range=given))
                    for given in ((), (0.0, 4095.0)))
    assert load_encoder(dull.encoder).transform.value_range == ()
    assert load_encoder(bright.encoder).transform.value_range == (0.0, 4095.0)
    told = json.loads(run_cli("info", str(bright.encoder), "--json")[1])
    assert told["transform"]["value_range"] == [0, 4095]
    result = embed_images(EmbedConfig(str(dark), workspace=workspace, device="cpu", workers=0))  # takes the encoder's
    with EmbeddingFile(result.path) as file:
        assert file.value_range == (0.0, 4095.0)
        assert file.describe()["value_range"] == [0.0, 4095.0]
    build_index(IndexConfig(workspace=workspace))
    _, found, _ = run_cli("search", str(dark / "05.tif"), "--workspace", workspace, "--device", "cpu", "-k", "1",
                          "--json", "--sheet", str(tmp_path / "s.png"))
    hit = json.loads(found)[0]["hits"][0]
    assert hit["path"] == str(dark / "05.tif")
    assert hit["score"] == pytest.approx(1, abs=1e-6)
    sheet = np.asarray(Image.open(tmp_path / "s.png").convert("L")).astype(int)
    assert sheet[64:216, 28:180].std() > 40  # drawn by the same range, not nearly black


def test_pretraining_warns_at_the_end_of_the_first_epoch(dark, tmp_path):
    from mocoembed.train.monitor import Watcher

    for cache in ("none", "ram"):
        said = []
        pretrain(PretrainConfig.of("small", str(dark), batch_size=4, bn_groups=1, queue_size=8, epochs=2, width=0.125,
                                   image_size=32, workers=0, device="cpu", workspace=str(tmp_path / cache),
                                   cache=cache), Watcher(note=said.append))
        assert sum("give --value-range 0,4095" in line for line in said) == 1


@pytest.mark.parametrize("value_range", [(1.0,), (3.0, 3.0), (5.0, 1.0), (0.0, float("inf")), (0.0, float("nan")),
                                         (0.0, 1.0, 2.0)])
def test_a_wrong_range_is_refused(value_range):
    for make in (lambda: EmbedConfig("x", value_range=value_range),
                 lambda: PretrainConfig.of("small", "x", value_range=value_range)):
        with pytest.raises(UsageError, match=r"--value-range .*: must be two finite numbers, the lower one first"):
            make()
