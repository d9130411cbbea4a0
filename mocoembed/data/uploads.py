"""From the host's memory to a device without waiting for it."""

from collections.abc import Sequence

import torch


def uploaded(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """x on the device; to a GPU by way of pinned memory, as a copy from any other waits for the work before it."""
    return x if device.type == "cpu" else x.pin_memory().to(device, non_blocking=True)


def uploaded_together(rows: Sequence[torch.Tensor], values: Sequence[torch.Tensor], device: torch.device,
                      ) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    """Vectors of int64 and vectors of float32 from the CPU, on the device, in one copy."""
    flat = [one.float().contiguous() for one in values]
    packed = uploaded(torch.cat([one.view(torch.uint8) for one in (*rows, *flat)]), device)
    border = 8 * sum(map(len, rows))  # bytes
    return (packed[:border].view(torch.int64).split([len(one) for one in rows]),
            packed[border:].view(torch.float32).split([len(one) for one in flat]))
