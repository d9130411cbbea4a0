"""A detector and a segmentation model of torchvision on an exported ResNet, as the MoCo paper transfers it (4.2).

In: what `mocoembed export --format torchvision` wrote, or `None` for random weights. Out: a model with new layers of
its own, all of which is trained.

BatchNorm decides here. `trained`: the backbone's BatchNorm is fine-tuned with the statistics of the batch, and the new
layers of the pyramid have it too, as in the paper, because features learned without labels have other magnitudes than
those that a detector's learning rate was chosen for. `frozen`: statistics and weights of the backbone stay as they came
(`FrozenBatchNorm2d`) and the pyramid has none, which is what torchvision does with supervised weights. A random
backbone that is frozen so is not normalised at all: its statistics are mean 0 and variance 1, whatever its features
are.
"""

import pathlib
from functools import partial

import torch
from torch import nn
from torchvision.models import get_model
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.segmentation.fcn import FCN, FCNHead
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign

NORMS = {"trained": nn.BatchNorm2d, "frozen": FrozenBatchNorm2d}
STAGES = {"layer1": "0", "layer2": "1", "layer3": "2", "layer4": "3"}
PYRAMID, HIDDEN, ANCHORS = 64, 256, (16, 24, 32, 48, 64)
"""Channels of the pyramid and of the box head, and anchors' sides, for scenes of 96 pixels instead of 800."""


def resnet(arch: str, weights: pathlib.Path | None, norm: str, seed: int) -> nn.Module:
    """torchvision's network with the exported weights, or random ones drawn from the seed; without a classifier."""
    torch.manual_seed(seed)
    network = get_model(arch, weights=None, norm_layer=NORMS[norm])
    network.fc = nn.Identity()
    if weights is not None:
        network.load_state_dict(torch.load(weights, weights_only=True))  # strict: no name missing, none left over
    return network


def detector(arch: str, weights: pathlib.Path | None, norm: str, seed: int, classes: int, side: int) -> FasterRCNN:
    """Faster R-CNN with a feature pyramid; `classes` with the background. The new layers depend on the seed alone."""
    body = resnet(arch, weights, norm, seed)
    channels = [_channels(getattr(body, stage)) for stage in STAGES]
    torch.manual_seed(seed)
    backbone = BackboneWithFPN(body, STAGES, channels, PYRAMID,
                               norm_layer=nn.BatchNorm2d if norm == "trained" else None)
    return FasterRCNN(
        backbone, min_size=side, max_size=side,
        rpn_anchor_generator=AnchorGenerator(tuple((one,) for one in ANCHORS), ((0.5, 1.0, 2.0),) * len(ANCHORS)),
        rpn_pre_nms_top_n_train=200, rpn_post_nms_top_n_train=100, rpn_batch_size_per_image=64,
        rpn_pre_nms_top_n_test=200, rpn_post_nms_top_n_test=50,
        box_roi_pool=MultiScaleRoIAlign([*STAGES.values()], 7, 2, canonical_scale=side // 2),
        box_head=TwoMLPHead(PYRAMID * 7 ** 2, HIDDEN), box_predictor=FastRCNNPredictor(HIDDEN, classes),
        box_batch_size_per_image=64, box_detections_per_img=20)


def segmenter(arch: str, weights: pathlib.Path | None, norm: str, seed: int, classes: int) -> FCN:
    """FCN with a stride of 16: the last stage keeps its resolution and is dilated by 2, as in the paper."""
    body = resnet(arch, weights, norm, seed)
    dilate(body.layer4)
    channels = _channels(body.layer4)
    torch.manual_seed(seed)
    return FCN(IntermediateLayerGetter(body, {"layer4": "out"}), FCNHead(channels, classes))


def dilate(stage: nn.Module):
    """Give a stage stride 1, and its 3x3 convolutions a dilation of 2; torchvision does so for bottlenecks alone."""
    for layer in stage.modules():
        if isinstance(layer, nn.Conv2d):
            layer.stride = (1, 1)
            if layer.kernel_size == (3, 3):
                layer.dilation = layer.padding = (2, 2)


def _channels(stage: nn.Module) -> int:
    last = [layer for layer in stage[-1].modules() if isinstance(layer, nn.Conv2d)][-1]
    return last.out_channels


MODELS = {"detection": partial(detector, side=96), "segmentation": segmenter}
