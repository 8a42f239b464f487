"""Adds tensors to a digest: the part of a model's fingerprint that all families share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# A larger tensor is sampled at this many evenly spaced entries, first and last included.
_MAX_ENTRIES_READ = 1 << 16


def add_tensor(digest: Any, name: str, tensor: Tensor) -> None:
    """Adds a tensor's name, shape, dtype and values to a `hashlib` digest.

    Tensors of up to 65,536 entries are read in full; of larger ones, 65,536 evenly spaced entries, so that 7 billion
    parameters take seconds. A few entries edited in a large tensor may go unnoticed. Independent of the device.
    """
    digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
    entries = tensor.reshape(-1)
    if entries.numel() > _MAX_ENTRIES_READ:
        last = entries.numel() - 1
        place = torch.arange(_MAX_ENTRIES_READ, device=tensor.device) * last // (_MAX_ENTRIES_READ - 1)
        entries = entries.index_select(0, place)
    digest.update(entries.cpu().contiguous().view(torch.uint8).numpy().tobytes())
