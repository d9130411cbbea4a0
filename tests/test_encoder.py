"""Backbones against torchvision's, and the parameter counts of the paper."""

import pytest
import torch
import torchvision

from mocoembed.errors import UsageError
from mocoembed.model.encoder import ARCHITECTURES, Backbone, Encoder, EncoderSpec, count_parameters


@pytest.mark.parametrize("arch", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_width_one_is_torchvisions_network(arch):
    torch.manual_seed(0)
    ours = Backbone(arch).eval()
    theirs = getattr(torchvision.models, arch)().eval()
    missing = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert missing.missing_keys == ["fc.weight", "fc.bias"]
    assert missing.unexpected_keys == []
    theirs.fc = torch.nn.Identity()
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours(x), theirs(x))


# He et al. 2019, section 4.1 and table of larger models: R50 24, RX50 46 (a wider ResNeXt), R50w2x 94, R50w4x 375 M.
@pytest.mark.parametrize(("width", "millions"), [(1, 24), (2, 94), (4, 375)])
def test_parameter_counts_of_the_paper(width, millions):
    with torch.device("meta"):
        backbone = Backbone("resnet50", width)
    assert count_parameters(backbone) / 1e6 == pytest.approx(millions, rel=0.025)
    assert backbone.features == 2048 * width


def test_every_architecture_has_its_torchvision_layout():
    for arch in ARCHITECTURES:
        with torch.device("meta"):
            ours, theirs = Backbone(arch).state_dict(), getattr(torchvision.models, arch)().state_dict()
        shapes = {name: tuple(value.shape) for name, value in theirs.items() if not name.startswith("fc.")}
        assert {name: tuple(value.shape) for name, value in ours.items()} == shapes


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


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(UsageError, match=r"--arch resnet19.*resnet18.*resnet50"):
        Backbone("resnet19")
    with pytest.raises(UsageError, match=r"--width 0.3:"):
        Backbone("resnet18", 0.3)
