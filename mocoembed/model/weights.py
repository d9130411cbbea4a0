"""Write a backbone for others: torchvision state dict, detectron2 pickle, ONNX."""

import json
import pickle

import torch
from torch import nn

from mocoembed.errors import UsageError
from mocoembed.files import replacing
from mocoembed.model.encoder import ARCHITECTURES, torchvision_layout
from mocoembed.model.encoder_file import FrozenEncoder
from mocoembed.model.timm_backbone import PREFIX as TIMM

INPUT_NOTE = ("float32 N x 3 x S x S, RGB: shorter side resized to `resize` with antialiasing, centre crop `crop`, "
              "divided by 255, minus `mean`, divided by `std`")


def backbone_weights(frozen: FrozenEncoder) -> dict[str, torch.Tensor]:
    """The backbone's state dict, float32 on the CPU, with torchvision's names (without the classifier)."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in frozen.encoder.backbone.state_dict().items()}


def write_torchvision(path, frozen: FrozenEncoder):
    """A state dict for `torchvision.models.<arch>().load_state_dict(..., strict=False)`: all but the last layer."""
    _require_torchvision(frozen, "torchvision")
    with replacing(path) as temporary:
        torch.save(backbone_weights(frozen), temporary)


def write_detectron2(path, frozen: FrozenEncoder):
    """A pickle for detectron2's `MODEL.WEIGHTS`, in the layout that the authors' converter writes."""
    if frozen.encoder.spec.arch not in ARCHITECTURES:
        others = "encoder, torchvision or onnx" if torchvision_layout(frozen.encoder.spec) else "encoder or onnx"
        raise UsageError(f"--format detectron2: is for ResNets only; this encoder is {frozen.encoder.spec.arch}. "
                         f"Give --format {others}.")
    _require_torchvision(frozen, "detectron2")
    model = {detectron2_name(name): tensor.numpy() for name, tensor in backbone_weights(frozen).items()
             if not name.endswith("num_batches_tracked")}
    content = {"model": model, "__author__": "mocoembed", "matching_heuristics": True}
    with replacing(path) as temporary:
        temporary.write_bytes(pickle.dumps(content))


def detectron2_name(name: str) -> str:
    """`layer1.0.bn1.weight` -> `res2.0.conv1.norm.weight`; what is outside the stages belongs to `stem`."""
    if not name.startswith("layer"):
        name = f"stem.{name}"
    for stage in range(1, 5):
        name = name.replace(f"layer{stage}", f"res{stage + 1}")
    for norm in range(1, 4):
        name = name.replace(f"bn{norm}", f"conv{norm}.norm")
    return name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")


def write_onnx(path, frozen: FrozenEncoder):
    """The backbone as ONNX: input `images` (N, 3, S, S), output `features` (N, D); preprocessing in its metadata."""
    try:
        import onnx
        import onnxscript  # noqa: F401 (torch's exporter needs it)
    except ImportError as error:
        raise UsageError("--format onnx needs the packages onnx and onnxscript. "
                         "Install them with: pip install 'mocoembed[onnx]'") from error
    metadata = frozen.metadata()
    side = frozen.transform.crop
    network: nn.Module = frozen.encoder.backbone.eval()
    program = torch.onnx.export(network, (torch.zeros(2, 3, side, side),), input_names=["images"],
                                output_names=["features"], dynamic_shapes=({0: torch.export.Dim("images")},),
                                dynamo=True, verbose=False)
    assert program is not None  # as it is with dynamo
    model = program.model_proto
    notes = {"mocoembed.fingerprint": metadata["fingerprint"], "mocoembed.input": INPUT_NOTE,
             "mocoembed.transform": json.dumps(metadata["transform"])}
    onnx.helper.set_model_props(model, notes)
    with replacing(path) as temporary:
        temporary.write_bytes(model.SerializeToString())


def _require_torchvision(frozen: FrozenEncoder, form: str):
    if not torchvision_layout(frozen.encoder.spec):
        spec = frozen.encoder.spec
        if spec.arch.startswith(TIMM):
            raise UsageError(f"--format {form}: timm's models, as this {spec.arch}, have no torchvision layout. "
                             "Give --format encoder or onnx.")
        raise UsageError(f"--format {form}: this encoder ({spec.arch}, width {spec.width:g}, stem {spec.stem}) has no "
                         "torchvision layout; only width 1 with stem 7x7s2-pool has. Give --format encoder or onnx.")


WRITERS = {"torchvision": (write_torchvision, ".pth"), "detectron2": (write_detectron2, ".pkl"),
           "onnx": (write_onnx, ".onnx")}
