"""Weights of others: every layout with its published keys, compared with the network that they were taken from."""

import argparse
import re

import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn
from torch.nn import functional

from mocoembed.config import EmbedConfig, ExportConfig, SearchConfig
from mocoembed.embed.extract import embed_images
from mocoembed.errors import FormatError, MismatchError, UsageError
from mocoembed.model.encoder import Backbone
from mocoembed.model.encoder_file import load_encoder
from mocoembed.model.foreign import Preprocessing, foreign_encoder
from mocoembed.recipes import CIFAR_MEAN, IMAGENET_MEAN
from mocoembed.search.query import search_images
from mocoembed.train.export import export_encoder, open_encoder
from mocoembed.workspace import Workspace

D, C = 64, 16


def network(arch="resnet18", width=0.125, stem="7x7s2-pool", seed=0):
    """A backbone whose BatchNorms have seen something."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone = Backbone(arch, width, stem)
        for layer in backbone.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.normal_(0, 0.1)
                layer.running_var.uniform_(0.5, 1.5)
                nn.init.uniform_(layer.weight, 0.5, 1.5)
    return backbone.eval().requires_grad_(False)


def under(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def head(*names, shapes=((D, D), (C, D))):
    """Linear layers under those names, from a fixed seed."""
    generator = torch.Generator().manual_seed(3)
    return {f"{name}.{part}".lstrip("."): torch.randn(shape[:n], generator=generator) / 8
            for name, shape in zip(names, shapes[-len(names):]) for part, n in (("weight", 2), ("bias", 1))}


def numbered(state, first_stage, shortcut="downsample"):
    """The names that nn.Sequential gives to the children of a ResNet."""
    children = {"conv1": "0", "bn1": "1", **{f"layer{i}": str(first_stage + i - 1) for i in range(1, 5)}}
    return {f"{children[name.split('.')[0]]}.{name.partition('.')[2]}".replace("downsample", shortcut): tensor
            for name, tensor in state.items()}


def moco(state, layers, wrapper="module."):
    noise = {"queue": torch.randn(C, 8), "queue_ptr": torch.zeros(1, dtype=torch.long)}
    keys = under("encoder_k.", {**network(seed=9).state_dict(), **layers})
    return {"epoch": 200, "arch": "resnet18", "optimizer": {"state": {}},
            "state_dict": under(wrapper, {**under("encoder_q.", {**state, **layers}), **keys, **noise})}


def wrapped(state, *wrappers):
    """The names with the wrappers around the whole, around every block and around every layer."""
    middle = ".".join(("", *wrappers, ""))
    return {middle[1:] + re.sub(r"(layer\d\.\d|conv\d|bn\d)\.", rf"\1{middle}", name): tensor
            for name, tensor in state.items()}


def counted_by_thop(state):
    """What thop's `profile` registers in every module."""
    modules = {"", *(f"{name.rpartition('.')[0]}." for name in state), "layer1.", "layer1.0."}
    return {f"{module}{name}": torch.zeros(1, dtype=torch.float64) for module in modules
            for name in ("total_ops", "total_params")}


def swav_head():
    return {**under("projection_head.", head("0", "3")), "projection_head.1.running_mean": torch.zeros(D),
            "prototypes.weight": torch.ones(30, C)}


def dino(state):
    return {**under("backbone.", state), **under("head.", head("mlp.0", "mlp.2")),
            "head.last_layer.weight_g": torch.ones(30, 1), "head.last_layer.weight_v": torch.ones(30, C)}


def lightning(state):
    return {"epoch": 3, "global_step": 30, "pytorch-lightning_version": "2.2.0", "state_dict": state, "loops": {}}


OTHER = network(seed=9).state_dict()  # the key encoder's, which must not be taken
# name -> (state dict of the network -> checkpoint, layout, kind of head, stem)
CHECKPOINTS = {
    "moco v1": (lambda s: moco(s, head("fc", shapes=((C, D),))), "MoCo", "linear"),
    "moco v2": (lambda s: moco(s, head("fc.0", "fc.2")), "MoCo", "mlp"),
    "moco v2, one process": (lambda s: moco(s, head("fc.0", "fc.2"), ""), "MoCo", "mlp"),
    "moco, state dict, compiled": (lambda s: moco(s, head("fc.0", "fc.2"), "module._orig_mod.")["state_dict"], "MoCo",
                                   "mlp"),
    "moco, no head": (lambda s: under("module.encoder_q.", s), "encoder_q alone", "none"),
    "moco's demo": (lambda s: {"epoch": 1, "state_dict": {
        **under("encoder_q.net.", {**numbered(s, 3), **head("9", shapes=((C, D),))}),
        **under("encoder_k.net.", numbered(OTHER, 3)), "queue": torch.randn(C, 8)}}, "MoCo, CIFAR-10 demo", "linear"),
    "moco v3": (lambda s: under("module.base_encoder.", {**s, **head("fc.0", "fc.3", "fc.6", shapes=((D, D),) * 3),
                                                         "fc.1.running_mean": torch.zeros(D)}), "MoCo v3", "none"),
    "lightly, documented": (lambda s: lightning({
        **under("backbone.", numbered(s, 4)), **under("projection_head.", head("layers.0", "layers.2")),
        **under("backbone_momentum.", numbered(OTHER, 4))}), "lightly", "mlp"),
    "lightly, its ResNets": (lambda s: lightning({
        **under("backbone.", numbered(s, 2, "shortcut")), **under("projection_head.", head("layers.0", "layers.2"))}),
        "lightly", "mlp"),
    "lightly, benchmark": (lambda s: lightning({
        **under("backbone.", OTHER), **under("query_backbone.", s),
        **under("projection_head.", head("layers.0", "layers.2", shapes=((D, D), (5, D)))),
        **under("query_projection_head.", head("layers.0", "layers.2"))}), "lightly", "mlp"),
    "solo-learn": (lambda s: lightning({
        **under("backbone.", s), **under("projector.", head("0", "2")), **under("momentum_backbone.", OTHER),
        **under("classifier.", head("", shapes=((10, D),)))}), "solo-learn", "mlp"),
    "solo-learn, old, wide head": (lambda s: lightning({
        **under("encoder.", s), **under("projector.", head("0", "2", shapes=((99, D), (C, 99))))}),
        "solo-learn", "none"),
    "mmselfsup": (lambda s: {"meta": {"epoch": 200}, "state_dict": {
        **under("encoder_q.0.", s), **under("encoder_q.1.", head("mlp.0", "mlp.2")), **under("encoder_k.0.", OTHER),
        **under("backbone.", s), **under("neck.", head("mlp.0", "mlp.2"))}}, "mmselfsup", "mlp"),
    "mmpretrain": (lambda s: {"meta": {}, "state_dict": {
        **under("backbone.", s), **under("neck.", head("mlp.0", "mlp.2")), **under("encoder_k.module.0.", OTHER)}},
        "mmpretrain", "mlp"),
    "mmpretrain, linear neck": (lambda s: {"state_dict": {
        **under("backbone.", s), **under("neck.", head("fc", shapes=((C, D),)))}}, "mmpretrain", "linear"),
    "mmpretrain, neck with BatchNorm": (lambda s: {"state_dict": {
        **under("backbone.", s), **under("neck.", head("fc0", "fc1")), "neck.bn0.weight": torch.ones(D)}},
        "mmpretrain", "none"),
    "mmpretrain, a neck that is no linear layer": (lambda s: {"state_dict": {
        **under("backbone.", s), "neck.fc.weight": torch.zeros(C, D), "neck.fc.scale": torch.full((C,), torch.nan)}},
        "mmpretrain", "none"),
    "vissl": (lambda s: {"phase_idx": 199, "type": "consolidated", "classy_state_dict": {"optim": {}, "base_model": {
        "meta": {"trunk": {}}, "model": {"trunk": under("_feature_blocks.", s),
                                         "heads": head("0.clf.0", "1.clf.0")}}}}, "VISSL", "mlp"),
    "vissl, converted": (lambda s: {"model_state_dict": under("_feature_blocks.", s)}, "VISSL", "none"),
    "vissl, one head": (lambda s: {"classy_state_dict": {"base_model": {"model": {
        "trunk": under("_feature_blocks.", s), "heads": head("0.clf.0", "0.clf.2")}}}}, "VISSL", "mlp"),
    "torchvision": (lambda s: {**s, **under("fc.", head("", shapes=((1000, D),)))}, "torchvision", "none"),
    "torchvision, DDP": (lambda s: {"model": under("module.", s)}, "torchvision", "none"),
    "moco, its backbone compiled": (lambda s: under("encoder_q._orig_mod.", s), "encoder_q alone", "none"),
    "lightly, DDP within": (lambda s: lightning({
        **under("backbone.module.", numbered(s, 4)), **under("projection_head.module.", head("layers.0", "layers.2"))}),
        "lightly", "mlp"),
    "solo-learn, compiled and FSDP": (lambda s: lightning({
        **under("backbone.", wrapped(s, "_fsdp_wrapped_module", "_orig_mod")), **under("projector.", head("0", "2"))}),
        "solo-learn", "mlp"),
    "torchvision, counted by thop": (lambda s: {**s, **counted_by_thop(s)}, "torchvision", "none"),
    "torchvision, AveragedModel": (lambda s: {"n_averaged": torch.tensor(7), **under("module.", s)}, "torchvision",
                                   "none"),
    "swav": (lambda s: under("module.", {**s, **swav_head()}), "SwAV", "none"),
    "swav, linear head": (lambda s: {"epoch": 9, "state_dict": {
        **s, **under("projection_head.", head("", shapes=((C, D),))), "prototypes.weight": torch.ones(30, C)}},
        "SwAV", "linear"),
    "lightly, swav": (lambda s: lightning({
        **under("backbone.", numbered(s, 4)), **under("projection_head.", head("layers.0", "layers.3")),
        "prototypes.heads.0.weight": torch.ones(30, C)}), "lightly", "none"),
    "dino": (lambda s: {"student": under("module.", dino(OTHER)), "teacher": dino(s), "epoch": 100,
                        "args": argparse.Namespace(arch="resnet50"), "optimizer": {"state": {0: {
                            "exp_avg": torch.zeros(3)}}}, "dino_loss": {"center": torch.zeros(1, 30)}},
             "DINO, teacher", "none"),
    "dino, backbones": (lambda s: {"teacher": s, "student": OTHER}, "DINO, teacher", "none"),
    "dino, no teacher": (lambda s: {"student": under("module.", dino(s))}, "DINO, student", "none"),
    "dino, one network": (dino, "backbone alone", "none"),
}


def opened(path, tmp_path, **more):
    return open_encoder(str(path), Workspace(tmp_path / "ws"), **more)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_every_layout_gives_the_network_it_was_taken_from(name, tmp_path):
    build, layout, kind = CHECKPOINTS[name]
    theirs = network(stem="3x3s1" if "demo" in name else "7x7s2-pool")
    torch.save(build(theirs.state_dict()), tmp_path / "c.pth.tar")
    notes = []
    frozen = opened(tmp_path / "c.pth.tar", tmp_path, note=notes.append)
    spec = frozen.encoder.spec
    assert (spec.arch, spec.width, spec.stem, spec.head) == ("resnet18", 0.125, theirs_stem(theirs), kind)
    assert frozen.provenance["layout"] == layout
    assert len(frozen.provenance["checkpoint_sha256"]) == 64
    x = torch.randn(2, 3, 40, 40)
    features = theirs(x)
    assert torch.equal(frozen.encoder.backbone(x), features)
    if kind != "none":
        layers = list(head("a", "b").values()) if kind == "mlp" else list(head("a", shapes=((C, D),)).values())
        if kind == "mlp":
            features = functional.relu(functional.linear(features, *layers[:2]))
        torch.testing.assert_close(frozen.encoder(x), functional.linear(features, *layers[-2:]))
    else:
        with pytest.raises(UsageError, match="came without a projection head"):
            frozen.dimension("projection")
    left_out = [text for text in notes if "skipped, not a known form" in text]
    assert bool(left_out) is ("left_out" in frozen.provenance) is (name in {
        "moco v3", "solo-learn, old, wide head", "mmpretrain, neck with BatchNorm",
        "mmpretrain, a neck that is no linear layer", "torchvision", "swav", "swav, linear head", "lightly, swav",
        "dino", "dino, no teacher", "dino, one network"})


def theirs_stem(backbone):
    return "7x7s2-pool" if backbone.conv1.kernel_size == (7, 7) else "3x3s1"


def test_published_shapes_as_the_authors_saved_them(tmp_path):
    """MoCo v2 in full size, in the file format of its time, against torchvision's own ResNet-50."""
    theirs = torchvision.models.resnet50(num_classes=128)
    theirs.fc = nn.Sequential(nn.Linear(2048, 2048), nn.ReLU(), theirs.fc)
    state = {f"module.encoder_q.{name}": tensor for name, tensor in theirs.state_dict().items()}
    assert len(state) == 322  # as in moco_v2_800ep_pretrain.pth.tar: 318 of the backbone, 4 of the head
    torch.save({"epoch": 800, "arch": "resnet50", "state_dict": state}, tmp_path / "moco.pth.tar",
               _use_new_zipfile_serialization=False)
    frozen = opened(tmp_path / "moco.pth.tar", tmp_path)
    assert (frozen.encoder.spec.arch, frozen.encoder.spec.head, frozen.encoder.spec.dim) == ("resnet50", "mlp", 128)
    assert (frozen.transform.resize, frozen.transform.crop, frozen.transform.mean) == (256, 224, IMAGENET_MEAN)
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(frozen.encoder(x), theirs.eval()(x))


@pytest.mark.parametrize(("arch", "width"), [("resnet34", 0.25), ("resnet50", 0.5), ("resnext50_32x4d", 0.5),
                                             ("wide_resnet50_2", 0.25)])
def test_architecture_and_width_are_told_from_the_shapes(arch, width):
    state = {name: tensor for name, tensor in network(arch, width).state_dict().items() if "num_batches" not in name}
    frozen = foreign_encoder(state, "x", Preprocessing(), {})
    assert (frozen.encoder.spec.arch, frozen.encoder.spec.width) == (arch, width)


def test_preprocessing_by_stem_and_by_hand(tmp_path):
    for stem, crop, mean in [("7x7s2-pool", 224, IMAGENET_MEAN), ("3x3s1", 32, CIFAR_MEAN)]:
        state = network(stem=stem).state_dict()
        assert foreign_encoder(state, "x", Preprocessing(), {}).transform.crop == crop
        assert foreign_encoder(state, "x", Preprocessing(), {}).transform.mean == mean
    torch.save(state, tmp_path / "c.pth")
    result = export_encoder(ExportConfig(str(tmp_path / "c.pth"), workspace=str(tmp_path), image_size=64,
                                         mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0)))
    transform = load_encoder(result.path).transform
    assert (transform.crop, transform.mean, transform.std) == (64, (0.1, 0.2, 0.3), (1.0, 1.0, 1.0))
    with pytest.raises(UsageError, match="are for weights of another library"):
        export_encoder(ExportConfig(str(result.path), workspace=str(tmp_path), image_size=64))
    for wrong in ({"mean": (0.5,)}, {"std": (1.0, 1.0, 0.0)}, {"image_size": 0}):
        with pytest.raises(UsageError, match=r"--(mean|std|image-size)"):
            ExportConfig(**wrong)


def change(state, **changes):
    return {**{name: tensor for name, tensor in state.items() if name not in changes},
            **{name: tensor for name, tensor in changes.items() if tensor is not None}}


WRONG = [
    ({"layer3.1.bn2.weight": None}, r"Missing: 'layer3\.1\.bn2\.weight'\."),
    ({"layer3.1.bn2.weight": None, "layer3.1.norm2.weight": torch.ones(4)},
     r"Missing: 'layer3\.1\.bn2\.weight'; Left over: 'layer3\.1\.norm2\.weight'\."),
    ({"layer2.0.conv1.weight": torch.zeros(16, 8, 5, 5)},
     r"Of another shape: 'layer2\.0\.conv1\.weight \(16, 8, 5, 5\) instead of \(16, 8, 3, 3\)'"),
    ({"conv1.weight": torch.zeros(8, 3, 5, 5)}, r"conv1\.weight has the shape \(8, 3, 5, 5\); it must be"),
    ({"conv1.weight": torch.zeros(0, 3, 7, 7)}, r"conv1\.weight has the shape \(0, 3, 7, 7\)"),
    ({"layer4.1.bn1.bias": torch.full((64,), torch.nan)}, r"layer4\.1\.bn1\.bias holds values that are not finite"),
    ({"layer4.1.bn1.bias": torch.full((64,), 1e300, dtype=torch.float64)}, "not finite"),
    ({"layer4.1.bn1.bias": torch.zeros(64, dtype=torch.int64)}, "of torch.int64, not of floats"),
    ({"layer4.1.bn1.bias": torch.zeros(64).to_sparse()}, "torch.sparse_coo tensor"),
    ({"conv1.weight": None}, "has no known layout: no key is that of a ResNet's first convolution. Its tensors: 'bn1"),
    ({f"layer4.1.{name}": None for name in network().layer4[1].state_dict()}, r"have \(2, 2, 2, 1\) basic blocks"),
]


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_what_does_not_fit_is_named(changes, message, tmp_path):
    torch.save({"state_dict": change(network().state_dict(), **changes)}, tmp_path / "c.pth")
    with pytest.raises(FormatError, match=message) as refusal:
        opened(tmp_path / "c.pth", tmp_path)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "ws").exists()


def test_a_network_that_is_there_twice_is_refused(tmp_path):
    state = network().state_dict()
    torch.save({**state, **under("module.", state)}, tmp_path / "c.pth")
    with pytest.raises(FormatError, match=r"holds 'conv1.weight' twice, once within a wrapper \('module.conv1"):
        opened(tmp_path / "c.pth", tmp_path)


def test_layers_beside_the_backbones_are_no_heads(tmp_path):
    """CLIP's ResNets have three convolutions first: without two of them the features would be others."""
    state = {**network(stem="3x3s1").state_dict(), "conv2.weight": torch.zeros(8, 8, 3, 3), "bn2.weight": torch.ones(8)}
    torch.save(state, tmp_path / "c.pth")
    with pytest.raises(FormatError, match=r"Left over: 'conv2\.weight', 'bn2\.weight'\."):
        opened(tmp_path / "c.pth", tmp_path)


def test_endless_nesting_ends(tmp_path):
    content = {}
    content["model"] = content["other"] = content
    torch.save(content, tmp_path / "c.pth")
    with pytest.raises(FormatError, match="has no known layout"):
        opened(tmp_path / "c.pth", tmp_path)


def test_safetensors_and_half_precision(tmp_path):
    theirs = network()
    state = {name: tensor.half() if tensor.is_floating_point() else tensor
             for name, tensor in theirs.state_dict().items()}
    safetensors.torch.save_file(under("encoder_q.", state), tmp_path / "c.safetensors")
    frozen = opened(tmp_path / "c.safetensors", tmp_path)
    assert frozen.encoder.backbone.conv1.weight.dtype == torch.float32
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(frozen.encoder.backbone(x), theirs(x), atol=1e-2, rtol=1e-2)
    data = (tmp_path / "c.safetensors").read_bytes()
    (tmp_path / "c.safetensors").write_bytes(data[:-10])
    with pytest.raises(FormatError):
        opened(tmp_path / "c.safetensors", tmp_path)


def test_embed_and_search_take_the_same_encoders_as_export(tmp_path, images, run_cli):
    torch.save(moco(network().state_dict(), head("fc.0", "fc.2")), tmp_path / "c.pth")
    torch.save(moco(network(seed=1).state_dict(), head("fc.0", "fc.2")), tmp_path / "d.pth")
    workspace = ["--workspace", tmp_path / "ws"]
    status, _, err = run_cli("embed", images, "--encoder", tmp_path / "c.pth", "--workers", 0, *workspace)
    assert status == 0
    assert "c.pth: layout MoCo, resnet18, images of 224 pixels" in err
    assert run_cli("index", *workspace)[0] == 0
    config = SearchConfig((str(images / "red" / "001.jpg"),), workspace=str(tmp_path / "ws"), k=1)
    assert search_images(config)[0].hits[0].score == pytest.approx(1, abs=1e-5)  # the encoder was kept
    status, out, _ = run_cli("search", config.images[0], "--encoder", tmp_path / "c.pth", "-k", 1, *workspace)
    assert (status, "001.jpg" in out) == (0, True)
    with pytest.raises(MismatchError, match=r"made with encoder \w{12}, but .*d\.pth is \w{12}"):
        search_images(SearchConfig(config.images, workspace=config.workspace, encoder=str(tmp_path / "d.pth")))
    torch.save(network().state_dict(), tmp_path / "bare.pth")
    with pytest.raises(UsageError, match="--features projection: this encoder came without a projection head"):
        embed_images(EmbedConfig(str(images), workspace=str(tmp_path / "ws2"), encoder=str(tmp_path / "bare.pth"),
                                 features="projection"))
    assert not (tmp_path / "ws2").exists()
