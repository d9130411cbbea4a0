"""Backbones against torchvision's, and the parameter counts of the paper."""

import copy
import subprocess
import sys

import pytest
import torch
import torchvision
from torchvision.models.regnet import BlockParams
from torchvision.models.resnet import Bottleneck, ResNet

from mocoembed.data.evaluation import EvaluationTransform
from mocoembed.errors import UsageError
from mocoembed.model.batchnorm import GroupedBatchNorm2d
from mocoembed.model.encoder import (
    ARCHITECTURES,
    Backbone,
    Encoder,
    EncoderSpec,
    Subsampled,
    build_backbone,
    check_backbone,
    count_parameters,
    known_architectures,
    zero_init_residual,
)
from mocoembed.model.encoder_file import FrozenEncoder, load_encoder, save_encoder
from mocoembed.model.weights import write_detectron2, write_onnx, write_torchvision

STEM = "7x7s2-pool"


@pytest.fixture
def on_meta(monkeypatch):
    """`on_meta(arch, ...)` builds a backbone without memory for its weights."""
    make = BlockParams.from_init_params.__func__

    def make_with_numbers(cls, *arguments, **more):  # a RegNet's sizes come out of small tensors
        with torch.device("cpu"):
            return make(cls, *arguments, **more)

    def build(arch, width=1.0, bn_groups=1):
        with torch.device("meta"):
            return build_backbone(arch, width, STEM, bn_groups)

    monkeypatch.setattr(BlockParams, "from_init_params", classmethod(make_with_numbers))
    return build


def theirs(arch):
    """torchvision's network of that name."""
    if arch == "resnext50_32x8d":
        return ResNet(Bottleneck, [3, 4, 6, 3], groups=32, width_per_group=8)
    more = {"aux_logits": False, "init_weights": True} if arch in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(arch, weights=None, **more)


@pytest.mark.parametrize("arch", ["resnet18", "resnet50", "resnext50_32x4d", "mobilenet_v3_small", "regnet_y_400mf"])
def test_width_one_is_torchvisions_network(arch):
    torch.manual_seed(0)
    ours, network = build_backbone(arch, 1, STEM).eval(), theirs(arch).eval()
    missing = network.load_state_dict(ours.state_dict(), strict=False)
    last = missing.missing_keys[0].removesuffix(".weight")
    assert missing.missing_keys == [f"{last}.weight", f"{last}.bias"]
    assert missing.unexpected_keys == []
    network.set_submodule(last, torch.nn.Identity())
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours(x), network(x))


# He et al. 2019, section 4.1 and the table of larger models.
@pytest.mark.parametrize(("arch", "width", "millions"), [("resnet50", 1, 24), ("resnext50_32x8d", 1, 46),
                                                         ("resnet50", 2, 94), ("resnet50", 4, 375)])
def test_parameter_counts_of_the_paper(on_meta, arch, width, millions):
    backbone = on_meta(arch, width)
    assert count_parameters(backbone) / 1e6 == pytest.approx(millions, rel=0.025)
    assert backbone.features == 2048 * width


def test_every_resnet_has_its_torchvision_layout(on_meta):
    for arch in ARCHITECTURES:
        with torch.device("meta"):
            whole = theirs(arch).state_dict()
        shapes = {name: tuple(value.shape) for name, value in whole.items() if not name.startswith("fc.")}
        assert {name: tuple(value.shape) for name, value in on_meta(arch).state_dict().items()} == shapes


SEVERAL = ["alexnet", "vgg11_bn", "googlenet", "mobilenet_v2", "regnet_x_400mf", "convnext_tiny", "swin_t", "vit_b_16"]


def check_on_meta(on_meta, arch):
    backbone = on_meta(arch, bn_groups=2)
    with torch.device("meta"):
        whole = theirs(arch).state_dict()
        assert backbone(torch.empty(4, 3, 224, 224)).shape == (4, backbone.features)
    ours = backbone.state_dict()
    last = [name for name in whole if name not in ours]
    assert {name.rpartition(".")[0] for name in last} == {last[0].removesuffix(".weight")}  # of one layer
    assert list(ours) == [name for name in whole if name not in last]
    assert all(ours[name].shape == whole[name].shape for name in ours)
    assert all(layer.groups == 2 for layer in backbone.modules() if isinstance(layer, torch.nn.BatchNorm2d))
    backbone.load_state_dict(dict(ours), assign=True)  # a plain state dict, as encoder files hold


@pytest.mark.parametrize("arch", SEVERAL)
def test_other_classifiers_of_torchvision(on_meta, arch):
    check_on_meta(on_meta, arch)


@pytest.mark.slow
@pytest.mark.parametrize("arch", [arch for arch in known_architectures() if arch not in (*ARCHITECTURES, *SEVERAL)])
def test_every_other_classifier_of_torchvision(on_meta, arch):
    check_on_meta(on_meta, arch)


def test_every_classifier_is_known_or_refused_with_a_reason():
    every = torchvision.models.list_models(module=torchvision.models)
    refused = set(every) - set(known_architectures())
    assert {name.rstrip("0123456789_") for name in refused} == {"mnasnet", "squeezenet"}
    for name in refused:
        with pytest.raises(UsageError, match=rf"--arch {name}: cannot be a backbone: (torchvision's MNASNet|it ends)"):
            build_backbone(name, 1, STEM)


def test_unknown_names_are_refused_with_the_known_ones():
    for name in ("resnet19", "fcn_resnet50", "r3d_18", "quantized_resnet18", "fasterrcnn_resnet50_fpn", ""):
        with pytest.raises(UsageError, match=rf"--arch {name}: must be timm:NAME or one of resnet18, .*resnet50.* vit"):
            build_backbone(name, 1, STEM)


def test_width_and_stem_are_for_resnets():
    for width, stem in [(0.5, STEM), (1, "3x3s1")]:
        with pytest.raises(UsageError, match=rf"vgg11: .*--width {width:g} and --stem {stem} are for ResNets only"):
            build_backbone("vgg11", width, stem)
    with pytest.raises(UsageError, match=r"--width 0.3:"):
        Backbone("resnet18", 0.3)


@pytest.mark.parametrize("arch", ["mobilenet_v3_small", "shufflenet_v2_x0_5"])
def test_grouped_batchnorm_in_place_of_torchvisions(arch):
    """Two groups: the mean of the running statistics that two networks have after half the batch each."""
    torch.manual_seed(0)
    grouped, x = build_backbone(arch, 1, STEM, bn_groups=2), torch.randn(4, 3, 64, 64)
    halves = [copy.deepcopy(grouped.network) for _ in range(2)]
    for half in halves:
        for layer in half.modules():
            if isinstance(layer, GroupedBatchNorm2d):
                layer.groups = 1
    together = grouped(x)
    torch.testing.assert_close(together, torch.cat([half(part) for half, part in zip(halves, x.split(2))]))
    states = [half.state_dict() for half in halves]
    for name, value in grouped.network.state_dict().items():
        if "running" in name:
            torch.testing.assert_close(value, (states[0][name] + states[1][name]) / 2)
    original = [(layer.eps, layer.momentum) for layer in theirs(arch).modules()
                if isinstance(layer, torch.nn.BatchNorm2d)]
    assert original == [(layer.eps, layer.momentum) for layer in grouped.modules()
                        if isinstance(layer, torch.nn.BatchNorm2d)]


@pytest.mark.parametrize("arch", ["efficientnet_b0", "convnext_tiny"])
def test_training_draws_no_random_numbers(arch):
    backbone, x = build_backbone(arch, 1, STEM).train(), torch.randn(2, 3, 64, 64)
    assert torch.equal(backbone(x), backbone(x))


def test_image_sizes_are_tried_and_missing_batchnorm_is_told():
    check_backbone(Encoder(EncoderSpec("resnet18", 0.125, "3x3s2", "mlp", 16)), 32)
    transformer = Encoder(EncoderSpec("vit_b_32", 1, STEM, "mlp", 16))
    with pytest.raises(UsageError, match=r"--image-size 96: does not go with --arch vit_b_32 \(Wrong image.*224"):
        check_backbone(transformer, 96)
    with pytest.warns(UserWarning, match=r"--arch vit_b_32 has no BatchNorm: --bn-groups"):
        check_backbone(transformer, 224)
    assert all(module.training for module in transformer.modules())


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_zeroed_residual_blocks(arch):
    torch.manual_seed(0)
    backbone = Backbone(arch, 0.125)
    zero_init_residual(backbone)
    network = torchvision.models.get_model(arch, weights=None, zero_init_residual=True)
    zero = [{name for name, value in one.state_dict().items() if name.endswith("weight") and not value.any()}
            for one in (backbone, network)]
    assert zero[0] == zero[1] != set()


def test_zeroed_residual_blocks_are_for_resnets():
    with pytest.raises(UsageError, match="for ResNets only"):
        zero_init_residual(build_backbone("mobilenet_v3_small", 1, STEM))


def test_an_encoder_file_of_another_classifier(tmp_path):
    torch.manual_seed(0)
    encoder = Encoder(EncoderSpec("mobilenet_v3_small", 1, STEM, "mlp", 16)).eval().requires_grad_(False)
    frozen = FrozenEncoder(encoder, EvaluationTransform.of(64, (0.5,) * 3, (0.5,) * 3), {})
    save_encoder(tmp_path / "e.safetensors", frozen)
    again, x = load_encoder(tmp_path / "e.safetensors"), torch.randn(3, 3, 64, 64)
    assert again.fingerprint() == frozen.fingerprint()
    assert frozen.dimension("backbone") == frozen.metadata()["features"] == 1024
    assert torch.equal(again.encoder(x), encoder(x))
    copied = copy.deepcopy(again.encoder)
    assert copied.load_state_dict(encoder.state_dict()) == ([], [])
    assert list(copied.state_dict()) == list(encoder.state_dict())
    write_torchvision(tmp_path / "b.pth", again)
    network = torchvision.models.mobilenet_v3_small().eval()
    report = network.load_state_dict(torch.load(tmp_path / "b.pth", weights_only=True), strict=False)
    assert (report.missing_keys, report.unexpected_keys) == (["classifier.3.weight", "classifier.3.bias"], [])
    network.classifier[3] = torch.nn.Identity()
    torch.testing.assert_close(network(x), encoder.backbone(x))
    with pytest.raises(UsageError, match=r"detectron2: is for ResNets only; this encoder is mobilenet_v3_small"):
        write_detectron2(tmp_path / "b.pkl", again)


@pytest.mark.slow
def test_onnx_of_another_classifier(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    encoder = Encoder(EncoderSpec("mobilenet_v3_small", 1, STEM, "mlp", 16)).eval().requires_grad_(False)
    write_onnx(tmp_path / "b.onnx", FrozenEncoder(encoder, EvaluationTransform.of(64, (0.5,) * 3, (0.5,) * 3), {}))
    session, x = onnxruntime.InferenceSession(str(tmp_path / "b.onnx")), torch.randn(3, 3, 64, 64)
    (features,) = session.run(["features"], {"images": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(features), encoder.backbone(x), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("stem", "side"), [("7x7s2-pool", 8), ("3x3s1", 32), ("3x3s2", 16)])
def test_stems(stem, side):
    backbone = Backbone("resnet18", 0.375, stem)
    x = backbone.maxpool(backbone.relu(backbone.bn1(backbone.conv1(torch.randn(2, 3, 32, 32)))))
    assert x.shape == (2, 24, side, side)
    assert backbone(torch.randn(2, 3, 32, 32)).shape == (2, 192)


@pytest.mark.parametrize(("head", "parameters"), [("linear", 64 * 16 + 16), ("mlp", 64 * 64 + 64 + 64 * 16 + 16)])
def test_heads(head, parameters):
    encoder = Encoder(EncoderSpec("resnet18", 0.125, "3x3s2", head, 16))
    assert count_parameters(encoder.head) == parameters
    assert encoder(torch.randn(2, 3, 32, 32)).shape == (2, 16)


@pytest.mark.parametrize(("stem", "deviation"), [("7x7s2-pool", (2 / (64 * 7 * 7)) ** 0.5),
                                                 ("3x3s1", (3 * 3 * 3) ** -0.5 / 3**0.5),
                                                 ("3x3s2", (3 * 3 * 3) ** -0.5 / 3**0.5)])
def test_the_first_convolution_starts_as_in_the_authors_code(stem, deviation):
    """torchvision's ResNet draws it by fan-out; the authors' notebook puts a new one there, as PyTorch draws it."""
    weights = torch.cat([Backbone("resnet18", 1.0, stem).conv1.weight.flatten() for _ in range(8)])
    assert weights.std().item() == pytest.approx(deviation, rel=0.03)


def test_a_narrow_network_learns_with_several_threads():
    """Where oneDNN's own strided gradient writes beyond its memory: in a process of its own, as that would end it."""
    script = """
import torch
from mocoembed.model.encoder import Encoder, EncoderSpec
torch.set_num_threads(2)
torch.manual_seed(0)
network = Encoder(EncoderSpec("resnet18", 0.125, "3x3s2", "mlp", 16)).to(memory_format=torch.channels_last)
for images in (25, 17, 5):
    x = torch.randn(images, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    for _ in range(4):
        network(x).square().sum().backward()
print("done")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_taking_pixels_first_is_the_same_convolution():
    torch.manual_seed(0)
    mine, plain = Subsampled(8, 16, 1, 2, bias=False), torch.nn.Conv2d(8, 16, 1, 2, bias=False)
    mine.load_state_dict(plain.state_dict())
    for side in (15, 16):
        x = torch.randn(4, 8, side, side, requires_grad=True)
        grads = []
        for layer in (mine, plain):
            layer.zero_grad()
            layer(x).square().sum().backward()
            grads.append((layer.weight.grad.clone(), x.grad.clone()))
            x.grad = None
        torch.testing.assert_close(mine(x), plain(x))
        torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-4)
    kinds = {type(one) for width in (0.125, 0.25) for one in Backbone("resnet18", width).modules()
             if isinstance(one, torch.nn.Conv2d) and one.in_channels < 16 and one.kernel_size == (1, 1)}
    assert kinds == {Subsampled}
    wide = Backbone("resnet18", 0.25).modules()
    assert Subsampled not in {type(one) for one in wide}
