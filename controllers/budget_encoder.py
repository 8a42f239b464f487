"""The budget encoder: maps a latency budget in ms to a vector of the model's width; and its file in a cache."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import save
from torch import Tensor, nn

from ..data.errors import CheckpointError, KnobctlError
from .weights import load_weights

CODE_WIDTH = 256
HIDDEN_WIDTH = 2048
CODE_BASE = 10000.0
CODE_SCALE = 32.0  # u = 32*log2(budget_ms): budgets 5 % apart differ by about half the code's norm
MAX_FILE_BYTES = 256 << 20


def budget_code(budget_ms_B: Tensor) -> Tensor:
    """Returns the 256 sinusoids of each budget, [B, 256] float32: 128 sines, then 128 cosines.

    The angles are u * base^(-i/128), i = 0..127, with u = 32*log2(budget_ms), as in sinusoidal position codes
    (Vaswani et al., 2017). They are computed in float64: u reaches the hundreds, and a float32 product would lose the
    last digits of the finest sinusoid.

    Raises:
        ValueError: a budget is not positive and finite.
    """
    budget_ms_B = budget_ms_B.to(torch.float32)
    if not bool((torch.isfinite(budget_ms_B) & (budget_ms_B > 0)).all()):
        raise ValueError(f"budgets must be positive, finite milliseconds: {budget_ms_B.tolist()}")
    half = CODE_WIDTH // 2
    frequency_F = CODE_BASE ** (-torch.arange(half, dtype=torch.float64, device=budget_ms_B.device) / half)
    angle_BF = CODE_SCALE * torch.log2(budget_ms_B.double())[:, None] * frequency_F
    return torch.cat([angle_BF.sin(), angle_BF.cos()], dim=-1).to(torch.float32)


class BudgetEncoder(nn.Module):
    """Budget code -> 2048 -> d_model with SiLU between: 4.7 M parameters at d_model 2048.

    Tensors have the names of `budget_encoder.safetensors`: `layers.0.{weight,bias}`, `layers.1.{weight,bias}`.
    """

    def __init__(self, d_model: int, generator: torch.Generator) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(CODE_WIDTH, HIDDEN_WIDTH), nn.Linear(HIDDEN_WIDTH, d_model)])
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            # Preserves variance from layer to layer, so that the output's norm is near sqrt(d_model) for any budget.
            nn.init.normal_(layer.weight, std=math.sqrt(2.0 / layer.in_features), generator=generator)
            nn.init.zeros_(layer.bias)

    @classmethod
    def from_seed(cls, d_model: int, seed: int) -> BudgetEncoder:
        """Returns a frozen encoder; the same seed gives the same weights."""
        encoder = cls(d_model, torch.Generator().manual_seed(seed))
        return encoder.requires_grad_(False)

    @property
    def _linears(self) -> tuple[nn.Linear, nn.Linear]:
        inner, outer = self.layers
        return cast(nn.Linear, inner), cast(nn.Linear, outer)

    @property
    def d_model(self) -> int:
        return self._linears[1].out_features

    def forward(self, budget_ms_B: Tensor) -> Tensor:
        """Returns the encoded budgets, [B, d_model]."""
        inner, outer = self._linears
        code_BC = budget_code(budget_ms_B).to(inner.weight)
        return outer(nn.functional.silu(inner(code_BC)))


def encoder_bytes(encoder: BudgetEncoder) -> bytes:
    """Returns the content of a cache's `budget_encoder.safetensors`."""
    return save({name: tensor.contiguous() for name, tensor in encoder.state_dict().items()})


def read_budget_encoder(path: Path, d_model: int, *, error: type[KnobctlError] = CheckpointError) -> BudgetEncoder:
    """Reads a cache's `budget_encoder.safetensors`; the encoder is frozen.

    Raises:
        error: the file is absent, larger than 256 MiB, damaged, or of another width.
    """
    encoder = BudgetEncoder.from_seed(d_model, 0)
    try:
        load_weights({"": encoder}, path, max_bytes=MAX_FILE_BYTES)
    except CheckpointError as problem:
        raise error(f"{problem}: a budget encoder of width {d_model} is needed; make the cache again.") from problem
    return encoder


def encoder_digest(encoder: BudgetEncoder) -> str:
    """Returns the sha256 of the encoder's weights, in hex."""
    digest = hashlib.sha256()
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()
