"""Encoders of torchvision and timm by name: the same vectors as the library's own model, without a network."""

import builtins
import hashlib
import json
import pathlib
import time
import urllib.error

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from PIL import Image
from torch import nn

from mocoembed.config import EmbedConfig, ExportConfig, IndexConfig, SearchConfig
from mocoembed.data.decode import EncodedImage
from mocoembed.embed.extract import embed_images
from mocoembed.embed.store import EmbeddingFile
from mocoembed.errors import FormatError, MocoembedError, UsageError
from mocoembed.model import published, timm_backbone
from mocoembed.model.encoder_file import load_encoder, save_encoder
from mocoembed.model.encoder_metadata import read_metadata
from mocoembed.model.foreign import Preprocessing
from mocoembed.model.library import library_encoder
from mocoembed.search.build import build_index
from mocoembed.search.query import search_images
from mocoembed.train.export import export_encoder, open_encoder
from mocoembed.workspace import Workspace


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    """Every address is out of reach; all caches are the test's own."""
    def refuse(request, timeout):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(published.urllib.request, "urlopen", refuse)
    monkeypatch.setenv("MOCOEMBED_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))


def shaken(network: nn.Module) -> nn.Module:
    """The network in evaluation mode, with statistics of BatchNorm that are not those of a new one."""
    torch.manual_seed(0)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -0.1, 0.1)
            nn.init.uniform_(layer.running_var, 0.8, 1.2)
    return network.eval()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """`hub(arch)` puts new weights of a torchvision model where its default weights are looked for; the model."""
    def put(arch: str, change=lambda state: state) -> nn.Module:
        weights = torchvision.models.get_model_weights(arch).DEFAULT
        more = {} if arch != "googlenet" else {"aux_logits": True, "init_weights": False}
        network = shaken(torchvision.models.get_model(arch, weights=None, **more))
        folder = tmp_path / "hub" / "checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(change(network.state_dict()), folder / "new.pth")
        digits = hashlib.sha256((folder / "new.pth").read_bytes()).hexdigest()[:8]
        (folder / "new.pth").rename(folder / f"{arch}-{digits}.pth")
        monkeypatch.setattr(weights.value, "url", f"https://weights.invalid/models/{arch}-{digits}.pth")
        return network

    return put


def without_last_linear(network: nn.Module) -> nn.Module:
    last = [name for name, layer in network.named_modules() if isinstance(layer, nn.Linear)][-1]
    network.set_submodule(last, nn.Identity())
    return network


@pytest.fixture
def photograph(tmp_path) -> Image:
    """A PNG of 300 x 260 pixels."""
    pixels = np.random.default_rng(0).integers(0, 255, (26, 30, 3), np.uint8)
    Image.fromarray(pixels).resize((300, 260), Image.Resampling.BICUBIC).save(tmp_path / "p.png")
    return EncodedImage((tmp_path / "p.png").read_bytes())


def vectors_of(frozen, image: EncodedImage) -> torch.Tensor:
    """What an embedding does: pixels, normalised, through the backbone."""
    x = torch.from_numpy(frozen.transform.pixels(image).copy()).permute(2, 0, 1)[None].float() / 255
    mean, std = (torch.tensor(value)[:, None, None] for value in (frozen.transform.mean, frozen.transform.std))
    with torch.inference_mode():
        return frozen.encoder.backbone((x - mean) / std)


@pytest.mark.parametrize("arch", ["resnet18", "densenet121", "googlenet", "mobilenet_v3_small", "efficientnet_b0"])
def test_torchvisions_own_model_and_transform_give_the_same(hub, photograph, arch):
    def as_published(state):  # the names of densenets' layers were others when theirs were published
        if arch != "densenet121":
            return state
        return {name.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): tensor
                for name, tensor in state.items() if not name.endswith("num_batches_tracked")}

    hub(arch, as_published)
    notes = []
    frozen = library_encoder(f"torchvision:{arch}", notes.append)
    weights = torchvision.models.get_model_weights(arch).DEFAULT
    theirs = without_last_linear(torchvision.models.get_model(arch, weights=weights).eval())
    with torch.inference_mode():
        expected = theirs(weights.transforms()(photograph.rgb())[None])
    found = vectors_of(frozen, photograph)
    assert found.shape == (1, frozen.dimension("backbone"))
    assert (found - expected).abs().max() < 2e-2 * expected.abs().max()  # theirs resizes floats, ours 8 bits
    assert nn.functional.cosine_similarity(found, expected).item() > 0.9999
    if arch != "googlenet":  # which shifts its images inside
        x = torch.randn(2, 3, 96, 96)
        torch.testing.assert_close(frozen.encoder.backbone(x), theirs(x), rtol=0, atol=0)
    assert frozen.provenance["name"] == f"torchvision:{arch}"
    assert frozen.provenance["weights"] == str(weights)
    assert "torchvision" in frozen.provenance["licence"]
    assert notes == []


def test_torchvisions_resnet50_is_prepared_as_its_weights_were(hub):
    hub("resnet50")
    transform = library_encoder("torchvision:resnet50", print).transform
    assert (transform.resize, transform.crop, transform.interpolation) == (232, 224, "bilinear")
    assert transform.mean == (0.485, 0.456, 0.406)


def test_torchvision_without_a_network_or_with_a_wrong_name(hub, tmp_path):
    with pytest.raises(MocoembedError, match=r"torchvision:resnet34 cannot be downloaded from .*not known"
                                             r"(?s:.*)put the file at .*hub/checkpoints/resnet34-b627a593.pth"):
        library_encoder("torchvision:resnet34", lambda text: None)
    with pytest.raises(UsageError, match=r"torchvision:resnet5: torchvision .* has no such classifier"):
        library_encoder("torchvision:resnet5", print)
    with pytest.raises(UsageError, match="no such classifier"):
        library_encoder("torchvision:squeezenet1_0", print)
    with pytest.raises(UsageError, match="resnet50 has the weights IMAGENET1K_V1, IMAGENET1K_V2"):
        library_encoder("torchvision:resnet50@V3", print)
    hub("resnet18")
    (path,) = (tmp_path / "hub" / "checkpoints").glob("*.pth")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    notes = []
    with pytest.raises(MocoembedError, match="cannot be downloaded"):
        library_encoder("torchvision:resnet18", notes.append)
    assert "is damaged and is downloaded again" in notes[0]


@pytest.mark.parametrize("given", ["torchvision:", "torchvision:@V1", "timm:"])
def test_a_library_without_a_name(given):
    with pytest.raises(UsageError, match=f"'{given}': the name of the model is missing"):
        library_encoder(given, print)


def test_weights_for_images_of_another_size_are_refused(hub):
    hub("vit_b_16", lambda state: {**state, "encoder.pos_embedding": torch.zeros(1, 577, 768)})
    with pytest.raises(FormatError, match=r"encoder\.pos_embedding.*name other weights with @"):
        library_encoder("torchvision:vit_b_16", print)


def test_embed_index_and_search_with_torchvisions_weights(hub, tmp_path, images, run_cli):
    hub("resnet18")
    where = ("--workspace", tmp_path / "ws", "--device", "cpu")
    status, out, _ = run_cli("embed", images, "--encoder", "torchvision:resnet18", "--workers", 0, *where)
    assert (status, "24 embedded" in out) == (0, True)
    build_index(IndexConfig(workspace=str(tmp_path / "ws")))
    query = images / "red" / "000.png"
    status, out, _ = run_cli("search", query, "-k", 1, "--format", "paths", *where)  # the encoder is the kept one
    assert (status, out) == (0, f"{query}\n")
    with EmbeddingFile(tmp_path / "ws" / "embeddings.h5") as file:
        assert file.encoder["provenance"]["name"] == "torchvision:resnet18"


def test_what_the_weights_say_themselves_is_not_to_be_given(hub, tmp_path):
    hub("resnet18")
    with pytest.raises(UsageError, match="torchvision:resnet18 defines them itself"):
        export_encoder(ExportConfig("torchvision:resnet18", str(tmp_path / "ws"), image_size=64))


# ------------------------------------------------------------------------------------------------------- timm


@pytest.fixture
def timm():
    return pytest.importorskip("timm")


@pytest.fixture
def timm_cache(timm, tmp_path):
    """`timm_cache(name)` puts new weights of a timm model into the cache folder; the whole model."""
    def put(name: str) -> nn.Module:
        torch.manual_seed(0)
        network = shaken(timm.create_model(name, pretrained=False))
        (tmp_path / "cache" / "timm").mkdir(parents=True, exist_ok=True)
        torch.save(network.state_dict(), tmp_path / "cache" / "timm" / f"{name}.pth")
        return network

    return put


@pytest.mark.parametrize("name", ["test_resnet.r160_in1k", "test_vit.r160_in1k", "mobilenetv3_small_050.lamb_in1k",
                                  "test_efficientnet.r160_in1k"])
def test_timms_own_model_and_transform_give_the_same(timm, timm_cache, photograph, name, tmp_path):
    network = timm_cache(name)
    network.reset_classifier(0)
    frozen = library_encoder(f"timm:{name.partition('.')[0]}", lambda text: None)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network), is_training=False)
    with torch.inference_mode():
        expected = network(transform(photograph.rgb())[None])
    found = vectors_of(frozen, photograph)
    assert found.shape == expected.shape == (1, frozen.dimension("backbone"))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    assert frozen.provenance["name"] == f"timm:{name}"
    assert frozen.provenance["timm"] == timm.__version__
    path = export_encoder(ExportConfig(f"timm:{name}", str(tmp_path / "ws"))).path
    again = load_encoder(path)
    assert again.encoder.spec.arch == f"timm:{name}"
    assert again.fingerprint() == frozen.fingerprint()
    torch.testing.assert_close(vectors_of(again, photograph), found, rtol=0, atol=0)


def test_a_timm_model_that_squashes_its_images(timm, photograph):
    name = next(name for name in timm.list_models(pretrained=True)
                if timm.get_pretrained_cfg(name).crop_mode == "squash")
    from mocoembed.model.timm_backbone import _transform

    config = timm.get_pretrained_cfg(name)
    ours = _transform(timm, config, name)
    assert ours.mode == "squash"
    theirs = timm.data.create_transform(**timm.data.resolve_data_config({}, pretrained_cfg=config.to_dict()))
    expected = theirs(photograph.rgb())
    pixels = torch.from_numpy(ours.pixels(photograph).copy()).permute(2, 0, 1).float() / 255
    mean, std = (torch.tensor(value)[:, None, None] for value in (ours.mean, ours.std))
    torch.testing.assert_close((pixels - mean) / std, expected)


def test_embed_and_search_with_a_timm_model(timm_cache, tmp_path, images):
    timm_cache("test_resnet.r160_in1k")
    workspace = str(tmp_path / "ws")
    embed_images(EmbedConfig(str(images), workspace, "timm:test_resnet", workers=0, device="cpu"))
    for path in (tmp_path / "cache" / "timm").iterdir():
        path.unlink()  # from here on the workspace's own copy must do
    build_index(IndexConfig(workspace=workspace))
    query = str(images / "red" / "000.png")
    (found,) = search_images(SearchConfig((query,), workspace, k=1, device="cpu"))
    assert found.hits[0].path == query
    assert found.hits[0].score == pytest.approx(1, abs=1e-5)


def test_timm_without_weights_or_with_wrong_ones(timm, timm_cache, tmp_path, monkeypatch):
    def out_of_reach(*arguments, **more):
        raise OSError("no way there.")

    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", out_of_reach)
    monkeypatch.setattr(timm_backbone, "_out_of_reach", lambda: None)
    with pytest.raises(MocoembedError, match=r"timm:test_resnet.r160_in1k cannot be downloaded from timm/test_resnet.*"
                                             r"no way there\.\n(?s:.*)or put it at .*cache/timm/test_resnet.r160_in1k"):
        library_encoder("timm:test_resnet", lambda text: None)
    timm_cache("test_vit.r160_in1k")
    folder = tmp_path / "cache" / "timm"
    (folder / "test_vit.r160_in1k.pth").rename(folder / "test_resnet.r160_in1k.pth")
    with pytest.raises(MocoembedError, match="does not hold the weights of test_resnet"):
        library_encoder("timm:test_resnet", lambda text: None)
    for name, message in [("resnet51", "near names are .*resnet50"), ("resnet50.nope", "it has a1_in1k"),
                          ("test_resnet@x", "has no model")]:
        with pytest.raises(UsageError, match=message):
            library_encoder(f"timm:{name}", print)


def test_without_timm_the_message_says_how_to_get_it(timm_cache, tmp_path, monkeypatch):
    timm_cache("test_resnet.r160_in1k")
    path = export_encoder(ExportConfig("timm:test_resnet", str(tmp_path / "ws"))).path
    real = builtins.__import__

    def without_timm(name, *arguments, **more):
        if name == "timm":
            raise ModuleNotFoundError("No module named 'timm'")
        return real(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", without_timm)
    for given in ("timm:test_resnet", str(path)):
        with pytest.raises(UsageError, match=r"need the package timm.*pip install 'mocoembed\[timm\]'"):
            open_encoder(given, Workspace(tmp_path))
    assert read_metadata(path)["encoder"]["arch"] == "timm:test_resnet.r160_in1k"  # its description needs none


def test_a_timm_model_is_not_of_torchvisions_layout(timm_cache, tmp_path):
    timm_cache("test_resnet.r160_in1k")
    for form, message in (("torchvision", "timm's models, as this timm:test_resnet.* have no torchvision layout"),
                          ("detectron2", "is for ResNets only.* Give --format encoder or onnx")):
        with pytest.raises(UsageError, match=f"--format {form}: {message}"):
            export_encoder(ExportConfig("timm:test_resnet", str(tmp_path / "ws"), form))


def test_fingerprints_of_encoders_from_before_are_what_they_were(make_encoder):
    identity = make_encoder().identity()
    assert set(identity["transform"]) == {"resize", "crop", "mean", "std", "interpolation"}
    json.dumps(identity)


# ------------------------------------------------------------------------------------ files of others' weights


def fine_tuned(network: nn.Module, path, classes: int = 7):
    """Write the network's weights with another classifier, as training scripts do; the network without it."""
    state = network.state_dict()
    names = [name for name in state if name.startswith(("fc.", "head.fc.", "classifier."))]
    assert names
    for name in names:
        state[name] = state[name][:classes].clone()
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save({"epoch": 3, "arch": "x", "state_dict": {f"module.{name}": state[name] for name in state}}, path)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_of_a_timm_model_that_was_fine_tuned(timm, name, suffix, photograph, tmp_path):
    torch.manual_seed(1)
    network, path = shaken(timm.create_model(name)), tmp_path / f"mine{suffix}"
    fine_tuned(network, path)
    notes = []
    frozen = library_encoder(f"timm:{name}={path}", notes.append)
    network.reset_classifier(0)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network), is_training=False)
    with torch.inference_mode():
        expected = network(transform(photograph.rgb())[None])
    torch.testing.assert_close(vectors_of(frozen, photograph), expected, rtol=1e-3,
                               atol=1e-3 * float(expected.abs().max()))
    full = frozen.provenance["name"]
    assert full.startswith(f"timm:{name}.")
    assert frozen.provenance["checkpoint_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert notes == [f"mine{suffix}: weights of {full}, images of {frozen.transform.crop} pixels"]
    again = load_encoder(export_encoder(ExportConfig(f"timm:{name}={path}", str(tmp_path / "ws"))).path)
    assert again.fingerprint() == frozen.fingerprint()


@pytest.mark.parametrize("arch", ["resnet18", "mobilenet_v3_small"])
def test_a_file_of_a_torchvision_model_that_was_fine_tuned(arch, photograph, tmp_path):
    network, path = shaken(torchvision.models.get_model(arch)), tmp_path / "mine=2.pth"
    torch.save(network.state_dict(), path)
    frozen = library_encoder(f"torchvision:{arch}={path}", lambda text: None,
                             Preprocessing(image_size=96, mean=(0.4, 0.5, 0.6)))
    assert (frozen.transform.crop, frozen.transform.mean) == (96, (0.4, 0.5, 0.6))
    assert frozen.transform.resize == round(torchvision.models.get_model_weights(arch).DEFAULT.transforms()
                                            .resize_size[0] * 96 / 224)
    x = torch.randn(2, 3, 96, 96)
    torch.testing.assert_close(frozen.encoder.backbone(x), without_last_linear(network)(x), rtol=0, atol=0)


def test_files_of_other_weights_are_refused_whole(timm, tmp_path, run_cli, images):
    state = shaken(timm.create_model("test_resnet")).state_dict()
    path, given = tmp_path / "w.pth", f"timm:test_resnet={tmp_path / 'w.pth'}"
    wrong = {name: tensor for name, tensor in state.items() if name not in ("conv1.weight", "bn1.bias")}
    cases = [({**wrong, "extra": torch.zeros(1)}, r"Missing: 'bn1.bias'.*Left over: 'extra'|Missing: 'conv1.weight'"),
             ({**state, "bn1.bias": torch.zeros(3)}, r"Of another shape: 'bn1.bias \(3,\) instead of"),
             ({**state, "bn1.bias": torch.full_like(state["bn1.bias"], torch.nan)}, "bn1.bias holds values")]
    for content, message in cases:
        torch.save(content, path)
        with pytest.raises(FormatError, match=message):
            library_encoder(given, print)
    with pytest.raises(UsageError, match=r"the file 'none\.pth' does not exist"):
        library_encoder("timm:test_resnet=none.pth", print)
    torch.save(pathlib.PurePosixPath, path)  # a class, not weights
    with pytest.raises(FormatError):
        library_encoder(given, print)
    torch.save(shaken(timm.create_model("test_efficientnet")).state_dict(), path)
    status, _, err = run_cli("embed", images, "--encoder", path, "--workspace", tmp_path / "ws", "--device", "cpu")
    assert (status, f"timm:NAME={path}" in err, f"torchvision:NAME={path}" in err) == (1, True, True)


def test_an_encoder_file_of_ours_needs_no_name(make_encoder, tmp_path):
    save_encoder(tmp_path / "e.safetensors", make_encoder())
    with pytest.raises(UsageError, match=r"says its network itself. Give .*e.safetensors alone"):
        library_encoder(f"torchvision:resnet18={tmp_path / 'e.safetensors'}", print)


def test_a_hub_out_of_reach_is_said_once_and_at_once(timm, tmp_path, run_cli, images):
    from huggingface_hub import constants

    began = time.monotonic()
    status, out, err = run_cli("embed", images, "--encoder", "timm:test_resnet", "--workspace", tmp_path / "ws")
    assert time.monotonic() - began < 10
    assert (status, out, len(err.splitlines())) == (1, "", 3)  # where from, what is wrong, what to do
    assert f"no way to {constants.ENDPOINT} (Name or service not known)" in err
    assert "timm:test_resnet.r160_in1k=FILE" in err
    assert constants.HF_HUB_OFFLINE is False
