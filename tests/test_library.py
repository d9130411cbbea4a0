"""Encoders of torchvision and timm by name: the same vectors as the library's own model, without a network."""

import builtins
import hashlib
import json
import urllib.error

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn

from mocoembed.config import EmbedConfig, ExportConfig, IndexConfig, PretrainConfig, SearchConfig
from mocoembed.data.decode import EncodedImage
from mocoembed.embed.extract import embed_images
from mocoembed.embed.store import EmbeddingFile
from mocoembed.errors import FormatError, MocoembedError, UsageError
from mocoembed.model import published
from mocoembed.model.encoder import Encoder, EncoderSpec, check_backbone
from mocoembed.model.encoder_file import load_encoder, read_metadata
from mocoembed.model.library import library_encoder
from mocoembed.search.index import build_index
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
    assert "is damaged; it is downloaded again" in notes[0]


@pytest.mark.parametrize("given", ["torchvision:", "torchvision:@V1", "timm:"])
def test_a_library_without_a_name(given):
    with pytest.raises(UsageError, match=f"'{given}' lacks the name of a model"):
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
    with pytest.raises(UsageError, match="torchvision:resnet18 says them itself"):
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
    with pytest.raises(MocoembedError, match=r"timm:test_resnet.r160_in1k cannot be had from timm/test_resnet.*no way"
                                             r" there\.\n(?s:.*)put its weights at .*cache/timm/test_resnet.r160_in1k"):
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


def test_a_timm_model_is_not_pretrained_and_not_of_torchvisions_layout(timm_cache, tmp_path):
    timm_cache("test_resnet.r160_in1k")
    with pytest.raises(UsageError, match="timm's models can embed, not be pretrained"):
        check_backbone(Encoder(EncoderSpec("timm:test_resnet", 1.0, "7x7s2-pool", "none", 0)), 64)
    for form, message in (("torchvision", "timm's models, as this timm:test_resnet.* have no torchvision layout"),
                          ("detectron2", "is for ResNets only.* Give --format encoder or onnx")):
        with pytest.raises(UsageError, match=f"--format {form}: {message}"):
            export_encoder(ExportConfig("timm:test_resnet", str(tmp_path / "ws"), form))


def test_fingerprints_of_encoders_from_before_are_what_they_were(make_encoder):
    identity = make_encoder()._identity()
    assert set(identity["transform"]) == {"resize", "crop", "mean", "std", "interpolation"}
    json.dumps(identity)


def test_pretrain_refuses_timm_on_the_command_line(timm, images, tmp_path, run_cli):
    status, _, err = run_cli("pretrain", images, "--recipe", "small", "--arch", "timm:test_resnet", "--width", 1,
                             "--stem", "7x7s2-pool", "--workspace", tmp_path / "ws", "--device", "cpu",
                             "--queue-size", 16, "--batch-size", 8, "--processes", 1)
    assert (status, "not be pretrained" in err) == (2, True), err
    assert PretrainConfig.of("small", str(images)).arch != "timm:test_resnet"
