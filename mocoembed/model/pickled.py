"""Read a PyTorch file of any origin without running anything in it.

`torch.load(weights_only=True)` refuses every class and function that it does not know. Those that training code is
known to leave beside the weights are replaced by stand-ins that take whatever they are given and do nothing; the
weights are all that is used of the file.
"""

from collections import OrderedDict
from collections.abc import Callable

import torch

from mocoembed.errors import FormatError


class Inert:
    """Stands in for an object of another library: takes whatever it is given and keeps nothing."""

    def __new__(cls, *arguments):
        return super().__new__(cls)

    def __init__(self, *arguments):
        pass

    def __setstate__(self, state):
        pass


class InertDict:
    """Stands in for a subclass of dict; torch's unpickler fills plain ones only."""

    def __new__(cls, *arguments):
        return OrderedDict()


# module -> names: what the training code of others leaves beside the weights (arguments, configurations, callbacks,
# logged numbers).
_PATHS = "Path PosixPath PurePosixPath WindowsPath PureWindowsPath"
_LIGHTNING = "AttributeDict"
INERT = {
    "argparse": "Namespace", "types": "SimpleNamespace", "typing": "Any", "pathlib": _PATHS, "pathlib._local": _PATHS,
    "builtins": "dict list tuple int float str bool slice",
    "numpy": "ndarray dtype",
    "numpy.core.multiarray": "scalar _reconstruct", "numpy._core.multiarray": "scalar _reconstruct",
    "numpy.dtypes": "Float16DType Float32DType Float64DType Int32DType Int64DType UInt8DType UInt32DType BoolDType",
    "omegaconf.dictconfig": "DictConfig", "omegaconf.listconfig": "ListConfig",
    "omegaconf.base": "Metadata ContainerMetadata",
    "omegaconf.nodes": "AnyNode StringNode IntegerNode FloatNode BooleanNode PathNode BytesNode",
    "mmengine.logging.history_buffer": "HistoryBuffer",
    "pytorch_lightning.callbacks.model_checkpoint": "ModelCheckpoint",
    "pytorch_lightning.callbacks.early_stopping": "EarlyStopping",
}
INERT_DICTS = {
    "collections": "defaultdict", "addict.addict": "Dict", "easydict": "EasyDict", "yacs.config": "CfgNode",
    "mmengine.config.config": "ConfigDict",
    "vissl.config.attr_dict": "AttrDict", "vissl.utils.hydra_config": "AttrDict",
    "pytorch_lightning.utilities.parsing": _LIGHTNING, "lightning.pytorch.utilities.parsing": _LIGHTNING,
    "lightning_fabric.utilities.data": _LIGHTNING, "lightning.fabric.utilities.data": _LIGHTNING,
}
STAND_INS: list[Callable | tuple[Callable, str]] = [
    (kind, f"{module}.{name}") for kind, table in ((Inert, INERT), (InertDict, INERT_DICTS))
    for module, names in table.items() for name in names.split()]


def read_pickled(path) -> dict:
    """The dictionary in a file of `torch.save`, on the CPU; whatever is neither a tensor nor plain data is inert.

    Raises `FormatError`, with nothing run, for a file that asks for any other class or function, is damaged, or holds
    something else.
    """
    try:
        with torch.serialization.safe_globals(STAND_INS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for files that are not its own
        text = str(error)
        if "GLOBAL " in text:
            named = text.split("GLOBAL ", 1)[1].split()[0]
            raise FormatError(f"{path} holds more than weights: it asks for {named!r}. Refused; none of its code "
                              "was executed. Save only its state dict, and give that.") from error
        raise FormatError(f"{path} is not a checkpoint, or is damaged ({type(error).__name__}). "
                          "Give a file of torch.save or safetensors.") from error
    if not isinstance(content, dict):
        raise FormatError(f"{path} is not a checkpoint: it holds a {type(content).__name__}, not a dictionary.")
    return content
