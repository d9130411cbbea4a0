"""The settings of `mocoembed classify`."""

from dataclasses import dataclass

from mocoembed.checks import at_least, device_name, standard_input_once
from mocoembed.config.pretrain import DEFAULT_WORKSPACE
from mocoembed.errors import UsageError


@dataclass(frozen=True)
class ClassifyConfig:
    """Everything that `mocoembed classify` needs."""

    images: tuple[str, ...] = ()
    """Images to classify: files, folders (searched recursively), or - for one image on standard input."""
    workspace: str = DEFAULT_WORKSPACE
    """Folder that holds the results of every command, where the next command finds them."""
    classifier: str | None = None
    """Classifier file, as finetune writes it; by default, classifier.safetensors in the workspace."""
    k: int = 1
    """Number of labels printed for each image, the most probable first."""
    device: str = "auto"
    """Device to compute on: auto, cpu, cuda or cuda:N."""
    torch: bool = False
    """Classify by torch instead of ONNX Runtime, which takes seconds to load; with --device cuda, it is used
    anyway."""

    def __post_init__(self):
        device_name(self)
        at_least(self, 1, "k")
        if not self.images:
            raise UsageError("No image to classify. Give one or more: mocoembed classify IMAGE...")
        standard_input_once(*self.images)
