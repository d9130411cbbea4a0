"""Stages of backbones, and what freezing the first of them changes."""

import copy

import pytest
import torch
from torch import nn

from mocoembed.model.encoder import build_backbone
from mocoembed.model.stages import Tuned, stages_of

ARCHITECTURES = {"resnet18": 5, "mobilenet_v3_small": 14, "timm:tf_efficientnet_lite0": 8, "timm:convnext_atto": 6}


def backbone_of(arch, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_backbone(arch, 0.125 if arch == "resnet18" else 1.0, "7x7s2-pool")


@pytest.mark.parametrize(("arch", "count"), ARCHITECTURES.items())
def test_every_parameter_is_in_one_stage(arch, count):
    backbone = backbone_of(arch)
    stages = stages_of(backbone)
    assert len(stages) == count
    found = [id(one) for stage in stages for one in stage]
    assert len(found) == len(set(found))
    assert set(found) == {id(one) for one in backbone.parameters()}
    assert all(stages)


def test_stages_of_a_resnet_are_the_stem_and_its_four_groups():
    backbone = backbone_of("resnet18")
    names = {id(parameter): name for name, parameter in backbone.named_parameters()}
    stages = [{names[id(one)].split(".")[0] for one in stage} for stage in stages_of(backbone)]
    assert stages == [{"conv1", "bn1"}, {"layer1"}, {"layer2"}, {"layer3"}, {"layer4"}]


@pytest.mark.parametrize("arch", ["resnet18", "mobilenet_v3_small", "timm:tf_efficientnet_lite0"])
@pytest.mark.parametrize("frozen", [0, 1, 3, "all"])
def test_frozen_stages_and_their_batchnorm_stay_as_they_were(arch, frozen):
    backbone = backbone_of(arch)
    frozen = len(stages_of(backbone)) if frozen == "all" else frozen
    before = copy.deepcopy(dict(backbone.named_parameters()) | dict(backbone.named_buffers()))
    names = {id(parameter): name for name, parameter in backbone.named_parameters()}
    still = {names[id(one)] for stage in stages_of(backbone)[:frozen] for one in stage}
    network = Tuned(backbone, 3, frozen).train()
    optimizer = torch.optim.SGD([one for one in network.parameters() if one.requires_grad], 0.1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        nn.init.normal_(network.classifier.weight)
        x = torch.randn(4, 3, 64, 64)
    nn.functional.cross_entropy(network(x), torch.tensor([0, 1, 2, 0])).backward()
    optimizer.step()
    for name, parameter in backbone.named_parameters():
        assert parameter.requires_grad == (name not in still)
        assert not (name in still and not torch.equal(parameter, before[name])), name
    for name, buffer in backbone.named_buffers():
        if name.endswith("running_mean"):  # only a live BatchNorm moves it
            moved = not torch.equal(buffer, before[name])
            assert moved == (name.replace("running_mean", "weight") not in still), name
    assert len(still) == sum(map(len, stages_of(backbone)[:frozen]))
    network.eval()
    assert not any(module.training for module in network.modules())
