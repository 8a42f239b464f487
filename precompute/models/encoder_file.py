"""`budget_encoder.safetensors`: the frozen budget encoder as it lies in a cache."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save

from ...controllers.budget_encoder import BudgetEncoder
from ...data.errors import CacheError

_MAX_BYTES = 256 << 20


def encoder_bytes(encoder: BudgetEncoder) -> bytes:
    """Returns the content of the file."""
    return save({name: tensor.contiguous() for name, tensor in encoder.state_dict().items()})


def read_encoder(path: Path, d_model: int) -> BudgetEncoder:
    """Reads the frozen encoder of a cache.

    Raises:
        CacheError: the file is absent, damaged, or of another width.
    """
    encoder = BudgetEncoder.from_seed(d_model, 0)
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise CacheError(f"{path} has more than {_MAX_BYTES:,} bytes: it is no budget encoder.")
        encoder.load_state_dict(load(path.read_bytes()))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CacheError(f"{path} is no budget encoder of width {d_model}: {reason}. Make the cache anew.") from error
    return encoder
