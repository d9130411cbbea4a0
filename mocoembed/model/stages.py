"""The stages of a backbone, from the image to the features, and freezing the first of them for fine-tuning.

A ResNet has five: the stem, and four groups of residual blocks. Other networks have one for each part that their
library keeps apart: timm's coarse groups of parameters; of torchvision the children, the largest one taken apart.
"""

import torch
from torch import nn

from mocoembed.model.encoder import Backbone
from mocoembed.model.timm_backbone import TimmBackbone, coarse_groups


def stages_of(backbone: nn.Module) -> list[list[nn.Parameter]]:
    """The parameters of every stage, in the order in which an image goes through them."""
    if isinstance(backbone, TimmBackbone):
        parameters = dict(backbone.network.named_parameters())
        groups = coarse_groups(backbone.network)
        return [[parameters[name] for name in names] for names in groups] if groups else _by_parts(backbone.network)
    if isinstance(backbone, Backbone):
        stem = [*backbone.conv1.parameters(), *backbone.bn1.parameters()]
        return [stem, *(list(getattr(backbone, f"layer{i}").parameters()) for i in range(1, 5))]
    return _by_parts(getattr(backbone, "network", backbone))


def _by_parts(network: nn.Module) -> list[list[nn.Parameter]]:
    """Children with parameters; one that has more than half of all is taken apart. Loose ones go with the first."""
    total = _count(list(network.parameters()))
    stages: list[list[nn.Parameter]] = []
    for child in network.children():
        parts = list(child.children())
        own = list(child.parameters(recurse=False))
        apart = len(parts) > 1 and not own and 2 * _count(list(child.parameters())) > total
        stages += [list(part.parameters()) for part in (parts if apart else [child])]
    stages = [stage for stage in stages if stage] or [[]]
    return [[*network.parameters(recurse=False), *stages[0]], *stages[1:]]


def _count(parameters: list[nn.Parameter]) -> int:
    return sum(one.numel() for one in parameters)


def frozen_parts(backbone: nn.Module, count: int) -> list[nn.Module]:
    """Freeze the first `count` stages; the modules that only they have, which must stay in evaluation mode.

    BatchNorm in them goes on with the statistics that it has, in training too.
    """
    for parameter in (one for stage in stages_of(backbone)[:count] for one in stage):
        parameter.requires_grad_(False)
    return [module for module in backbone.modules()
            if (own := list(module.parameters())) and not any(one.requires_grad for one in own)]


class Tuned(nn.Module):
    """A backbone and a linear layer on its features, of which the first stages are frozen."""

    def __init__(self, backbone: nn.Module, classes: int, frozen_stages: int):
        super().__init__()
        features = backbone.features
        assert isinstance(features, int)
        self.backbone = backbone.requires_grad_(True)
        self.classifier = nn.Linear(features, classes)
        nn.init.normal_(self.classifier.weight, std=0.01)  # as in the authors' linear protocol
        nn.init.zeros_(self.classifier.bias)
        self._still = frozen_parts(backbone, frozen_stages)

    def train(self, mode: bool = True):
        """Training mode for all but the frozen stages."""
        super().train(mode)
        for module in self._still:
            module.eval()
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.backbone(x))  # N x 3 x S x S -> N x D -> N x classes
