"""Read a PyTorch file of any origin without running anything in it.

`torch.load(weights_only=True)` refuses every class and function that it does not know. Those that training code is
known to leave beside the weights are replaced by stand-ins that take whatever they are given and do nothing; the
weights are all that is used of the file.
"""

from collections import OrderedDict

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


# What the training code of others leaves beside the weights: arguments, configurations, callbacks, logged numbers.
INERT = """
argparse.Namespace types.SimpleNamespace typing.Any enum.Enum
builtins.dict builtins.list builtins.tuple builtins.int builtins.float builtins.str builtins.bool builtins.slice
pathlib.Path pathlib.PosixPath pathlib.PurePosixPath pathlib.WindowsPath pathlib.PureWindowsPath
pathlib._local.Path pathlib._local.PosixPath pathlib._local.WindowsPath
numpy.ndarray numpy.dtype numpy.core.multiarray.scalar numpy._core.multiarray.scalar
numpy.core.multiarray._reconstruct numpy._core.multiarray._reconstruct
numpy.dtypes.Float16DType numpy.dtypes.Float32DType numpy.dtypes.Float64DType numpy.dtypes.Int32DType
numpy.dtypes.Int64DType numpy.dtypes.UInt8DType numpy.dtypes.UInt32DType numpy.dtypes.BoolDType
omegaconf.dictconfig.DictConfig omegaconf.listconfig.ListConfig omegaconf.base.Metadata
omegaconf.base.ContainerMetadata omegaconf.nodes.AnyNode omegaconf.nodes.StringNode omegaconf.nodes.IntegerNode
omegaconf.nodes.FloatNode omegaconf.nodes.BooleanNode omegaconf.nodes.PathNode omegaconf.nodes.BytesNode
mmengine.logging.history_buffer.HistoryBuffer
pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint
pytorch_lightning.callbacks.early_stopping.EarlyStopping
""".split()
INERT_DICTS = """
collections.defaultdict addict.addict.Dict easydict.EasyDict yacs.config.CfgNode mmengine.config.config.ConfigDict
vissl.config.attr_dict.AttrDict vissl.utils.hydra_config.AttrDict
pytorch_lightning.utilities.parsing.AttributeDict lightning.pytorch.utilities.parsing.AttributeDict
lightning_fabric.utilities.data.AttributeDict lightning.fabric.utilities.data.AttributeDict
""".split()
STAND_INS = [(Inert, name) for name in INERT] + [(InertDict, name) for name in INERT_DICTS]


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
            raise FormatError(f"{path} holds more than weights: it asks for {named!r}. Refused; nothing in it was run. "
                              "Save its state dict alone, and give that.") from error
        raise FormatError(f"{path} is not a checkpoint, or is damaged ({type(error).__name__}). "
                          "Give a file of torch.save or safetensors.") from error
    if not isinstance(content, dict):
        raise FormatError(f"{path} is not a checkpoint: it holds a {type(content).__name__}, not a dictionary.")
    return content
