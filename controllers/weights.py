"""Reads an untrusted safetensors file into modules: bounded, every tensor checked by name, shape, type and value."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from ..data.errors import CheckpointError

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def load_weights(
    modules: Mapping[str, nn.Module],
    path: Path,
    *,
    max_bytes: int,
    digest: object = None,
) -> None:
    """Copies a file into `modules`, whose tensors it must match exactly.

    Args:
        modules: by the prefix of their tensors' names; "" for no prefix.
        digest: the file's sha256 in hex; None checks none.

    Raises:
        CheckpointError: the file is absent, too large or not safetensors, or a tensor, which is named, does not match.
    """
    wanted = {
        f"{part}.{name}" if part else name: tensor
        for part, module in modules.items()
        for name, tensor in module.state_dict().items()
    }
    try:
        if path.stat().st_size > max_bytes:
            raise CheckpointError(f"{path} is larger than {max_bytes:,} bytes, more than these weights ever need")
        if digest is not None and hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            raise CheckpointError(f"{path} is not the file that the JSON beside it was written with (sha256 differs)")
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            if names != set(wanted):
                odd = sorted(names ^ set(wanted))[:4]
                raise CheckpointError(
                    f"{path} does not hold exactly the tensors expected: {odd} are missing or unknown"
                )
            for name, target in wanted.items():
                shape = tuple(file.get_slice(name).get_shape())
                if shape != tuple(target.shape):
                    raise CheckpointError(f"{path}: tensor {name} has shape {shape}, expected {tuple(target.shape)}")
                source = file.get_tensor(name)
                if source.dtype not in (target.dtype, *_FLOATS):
                    raise CheckpointError(f"{path}: tensor {name} holds {source.dtype}, expected {target.dtype}")
                if source.is_floating_point() != target.is_floating_point() or not bool(torch.isfinite(source).all()):
                    raise CheckpointError(f"{path}: tensor {name} holds {source.dtype} or numbers that are not finite")
                with torch.no_grad():
                    target.copy_(source)
                if not bool(torch.isfinite(target).all()):
                    raise CheckpointError(f"{path}: tensor {name} holds numbers beyond {target.dtype}")
    except (OSError, SafetensorError) as cause:
        raise CheckpointError(f"{path} cannot be read: {cause}") from cause
