"""Frozen input bases: fixed projections, fitted in closed form on the training split, which the controllers read.

They are buffers, not parameters: nothing trains them. Fitting lives in `replay/fit_bases.py`; this file only applies
them, at training and at deployment alike. Shapes: D = d_model, F features, T tiers, P insertion positions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

CLAMP = 6.0  # features are scaled to about unit variance; a stranger input must not saturate the controllers


class VectorBasis(nn.Module):
    """(x - mean) @ projection, clamped: for the language feature and for the encoded budget."""

    mean_D: Tensor
    projection_DF: Tensor

    def __init__(self, d_model: int, features: int) -> None:
        super().__init__()
        self.register_buffer("mean_D", torch.zeros(d_model))
        self.register_buffer("projection_DF", torch.zeros(d_model, features))

    @property
    def features(self) -> int:
        return int(self.projection_DF.shape[1])

    def forward(self, x_BD: Tensor) -> Tensor:
        """Returns the features, [B, F] float32."""
        return ((x_BD.to(self.mean_D.dtype) - self.mean_D) @ self.projection_DF).clamp(-CLAMP, CLAMP)


class TokenBasis(nn.Module):
    """The latency token's features: one projection per insertion position, then centred per (tier, position).

    A token read later in the stack lies in other directions, and its mean depends on where it was read.
    """

    projection_PDF: Tensor
    offset_TPF: Tensor

    def __init__(self, d_model: int, features: int, tiers: int, positions: int) -> None:
        super().__init__()
        self.register_buffer("projection_PDF", torch.zeros(positions, d_model, features))
        self.register_buffer("offset_TPF", torch.zeros(tiers, positions, features))

    @property
    def features(self) -> int:
        return int(self.projection_PDF.shape[2])

    def project(self, token_NTMD: Tensor, position: int) -> Tensor:
        """Returns the features of tokens that were all read at this position index, [N, T, M, F]."""
        feature_NTMF = token_NTMD @ self.projection_PDF[position]
        return (feature_NTMF - self.offset_TPF[:, position, None, :]).clamp(-CLAMP, CLAMP)

    def forward(self, token_BD: Tensor, tier_B: Tensor, position_B: Tensor) -> Tensor:
        """Returns the features of tokens [B, D] that were read at these tier and position indices, [B, F] float32."""
        token_BD = token_BD.to(self.offset_TPF.dtype)
        feature_BF = token_BD.new_zeros(len(token_BD), self.features)
        for position in range(len(self.projection_PDF)):
            rows = (position_B == position).nonzero()[:, 0]
            if len(rows):
                feature_BF[rows] = token_BD[rows] @ self.projection_PDF[position]
        return (feature_BF - self.offset_TPF[tier_B, position_B]).clamp(-CLAMP, CLAMP)
