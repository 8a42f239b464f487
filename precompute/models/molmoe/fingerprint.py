"""A digest of a model's config and weights as loaded."""

from __future__ import annotations

import hashlib
import json

import torch

from .model import Molmoe
from .tensor_names import published_tensors

# A larger tensor is sampled at this many evenly spaced entries, first and last included.
_MAX_ENTRIES_READ = 1 << 16


def model_fingerprint(model: Molmoe) -> str:
    """Returns the sha256, in hex, of config, dtype, and every published tensor's name, shape and values.

    Tensors of up to 65,536 entries are read in full, which includes every tensor of the bundled model; of larger ones,
    65,536 evenly spaced entries, so that 7 billion parameters take seconds. A training step, another seed or another
    dtype changes them all; a few entries edited in a large tensor may go unnoticed. Independent of the device.
    """
    digest = hashlib.sha256(json.dumps(model.config.to_dict(), sort_keys=True).encode())
    for name, target in sorted(published_tensors(model).items()):
        tensor = target.view
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        entries = tensor.reshape(-1)
        if entries.numel() > _MAX_ENTRIES_READ:
            last = entries.numel() - 1
            place = torch.arange(_MAX_ENTRIES_READ, device=tensor.device) * last // (_MAX_ENTRIES_READ - 1)
            entries = entries.index_select(0, place)
        digest.update(entries.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
