"""ResNets as torchvision has them: (N, 3, S, S) -> (N, D), with the same names, shapes and beginnings of the tensors.

Importing torchvision takes as long as importing torch, and of its networks most commands need a ResNet at most
(He et al. 2016, with the stride of a bottleneck in its 3x3 convolution; ResNeXt: Xie et al. 2017). Drawn from the same
stream of random numbers, the weights are torchvision's, which a test compares.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn

Norm = Callable[[int], nn.Module]


def conv3x3(inputs: int, outputs: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size, but for the stride."""
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, groups=groups, bias=False)


def conv1x1(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """A 1x1 convolution."""
    return nn.Conv2d(inputs, outputs, 1, stride, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a way around them; C `planes` out."""

    expansion = 1

    def __init__(self, inputs: int, planes: int, stride: int, downsample: nn.Module | None, norm: Norm,
                 groups: tuple[int, int] = (1, 64)):
        super().__init__()
        self.conv1 = conv3x3(inputs, planes, stride)
        self.bn1 = norm(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(planes, planes)
        self.bn2 = norm(planes)
        self.downsample = downsample

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class Bottleneck(nn.Module):
    """1x1, 3x3 (in groups, with the stride) and 1x1 convolutions and a way around them; 4 C out."""

    expansion = 4

    def __init__(self, inputs: int, planes: int, stride: int, downsample: nn.Module | None, norm: Norm,
                 groups: tuple[int, int] = (1, 64)):
        """`groups`: of the 3x3 convolution, and the channels of each where `planes` is 64."""
        super().__init__()
        width = int(planes * (groups[1] / 64)) * groups[0]
        self.conv1 = conv1x1(inputs, width)
        self.bn1 = norm(width)
        self.conv2 = conv3x3(width, width, stride, groups[0])
        self.bn2 = norm(width)
        self.conv3 = conv1x1(width, planes * self.expansion)
        self.bn3 = norm(planes * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


Block = type[BasicBlock] | type[Bottleneck]


class ResNet(nn.Module):
    """Stem, four stages of `layers` blocks, mean over the positions and a linear layer to 1,000 classes."""

    def __init__(self, block: Block, layers: Sequence[int], norm_layer: Norm = nn.BatchNorm2d, groups: int = 1,
                 width_per_group: int = 64):
        super().__init__()
        self._norm_layer, self._groups, self.inplanes = norm_layer, (groups, width_per_group), 64
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        self.bn1 = norm_layer(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool: nn.Module = nn.MaxPool2d(3, 2, padding=1)
        self.layer1 = self._make_layer(block, 64, layers[0])
        self.layer2 = self._make_layer(block, 128, layers[1], stride=2)
        self.layer3 = self._make_layer(block, 256, layers[2], stride=2)
        self.layer4 = self._make_layer(block, 512, layers[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc: nn.Module = nn.Linear(512 * block.expansion, 1000)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def _make_layer(self, block: Block, planes: int, blocks: int, stride: int = 1) -> nn.Sequential:
        outputs, downsample = planes * block.expansion, None
        if stride != 1 or self.inplanes != outputs:
            downsample = nn.Sequential(conv1x1(self.inplanes, outputs, stride), self._norm_layer(outputs))
        made = []
        for number in range(blocks):
            first = number == 0
            made.append(block(self.inplanes, planes, stride if first else 1, downsample if first else None,
                              self._norm_layer, self._groups))
            self.inplanes = outputs
        return nn.Sequential(*made)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))  # N x 3 x S x S -> N x 64 x S/4 x S/4
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))  # -> N x D x S/32 x S/32
        return self.fc(torch.flatten(self.avgpool(x), 1))
