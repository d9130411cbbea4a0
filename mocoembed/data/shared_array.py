"""An array that spawned processes share, as forked ones do: without it each would get a copy of a million paths."""

from typing import Any

import numpy as np


class SharedArray:
    """Holds the array `values`. Pickled for another process, it moves once into memory that all of them share."""

    def __init__(self, values: np.ndarray):
        self.values = values
        self._tensor: Any = None

    def __reduce__(self):
        import torch  # whose tensors travel that way; what only reads a listing does without it

        if self._tensor is None:
            self._tensor = torch.from_numpy(np.require(self.values, requirements="W")).share_memory_()
            self.values = self._tensor.numpy()
        return _from_tensor, (self._tensor,)


def _from_tensor(tensor) -> SharedArray:
    return SharedArray(tensor.numpy())
