"""Frozen input bases: fixed maps, fitted in closed form on the training split, which the controllers read.

Each has a linear part, a projection, and a smooth part, a sum of random Fourier features (Rahimi and Recht, 2007) of
the inputs' leading components: what hangs on the input in bends, as neighbours see it, no projection shows.

They are buffers, not parameters: nothing trains them. Fitting lives in `replay/bases/`; this file only applies
them, at training and at deployment alike. Shapes: D = d_model, F features, T tiers, P insertion positions, C leading
components, W waves.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

CLAMP = 6.0  # features are scaled to about unit variance; a stranger input must not saturate the controllers
COMPONENTS = 32


class VectorBasis(nn.Module):
    """(x - mean) @ projection + waves of (x - mean) @ direction, clamped: for language feature and encoded budget."""

    mean_D: Tensor
    projection_DF: Tensor
    direction_DC: Tensor
    wave_CW: Tensor
    phase_W: Tensor
    smooth_WF: Tensor

    def __init__(self, d_model: int, features: int, waves: int = 0) -> None:
        super().__init__()
        self.waves = waves
        self.register_buffer("mean_D", torch.zeros(d_model))
        self.register_buffer("projection_DF", torch.zeros(d_model, features))
        if waves:
            self.register_buffer("direction_DC", torch.zeros(d_model, COMPONENTS))
            self.register_buffer("wave_CW", torch.zeros(COMPONENTS, waves))
            self.register_buffer("phase_W", torch.zeros(waves))
            self.register_buffer("smooth_WF", torch.zeros(waves, features))

    @property
    def features(self) -> int:
        return int(self.projection_DF.shape[1])

    def forward(self, x_BD: Tensor) -> Tensor:
        """Returns the features, [B, F] float32."""
        centred_BD = x_BD.to(self.mean_D.dtype) - self.mean_D
        feature_BF = centred_BD @ self.projection_DF
        if self.waves:
            component_BC = centred_BD @ self.direction_DC
            feature_BF = feature_BF + waves_of(component_BC, self.wave_CW, self.phase_W) @ self.smooth_WF
        return feature_BF.clamp(-CLAMP, CLAMP)


class TokenBasis(nn.Module):
    """The latency token's features: one map per insertion position, centred per (tier, position).

    A token read later in the stack lies in other directions, and its mean depends on where it was read.
    """

    projection_PDF: Tensor
    offset_TPF: Tensor
    direction_PDC: Tensor
    centre_TPC: Tensor
    wave_PCW: Tensor
    phase_W: Tensor
    smooth_PWF: Tensor

    def __init__(self, d_model: int, features: int, tiers: int, positions: int, waves: int = 0) -> None:
        super().__init__()
        self.waves = waves
        self.register_buffer("projection_PDF", torch.zeros(positions, d_model, features))
        self.register_buffer("offset_TPF", torch.zeros(tiers, positions, features))
        if waves:
            self.register_buffer("direction_PDC", torch.zeros(positions, d_model, COMPONENTS))
            self.register_buffer("centre_TPC", torch.zeros(tiers, positions, COMPONENTS))
            self.register_buffer("wave_PCW", torch.zeros(positions, COMPONENTS, waves))
            self.register_buffer("phase_W", torch.zeros(waves))
            self.register_buffer("smooth_PWF", torch.zeros(positions, waves, features))

    @property
    def features(self) -> int:
        return int(self.projection_PDF.shape[2])

    def project(self, token_NTMD: Tensor, position: int) -> Tensor:
        """Returns the features of tokens that were all read at this position index, [N, T, M, F]."""
        feature_NTMF = token_NTMD @ self.projection_PDF[position] - self.offset_TPF[:, position, None, :]
        if self.waves:
            component_NTMC = token_NTMD @ self.direction_PDC[position] - self.centre_TPC[:, position, None, :]
            feature_NTMF += waves_of(component_NTMC, self.wave_PCW[position], self.phase_W) @ self.smooth_PWF[position]
        return feature_NTMF.clamp(-CLAMP, CLAMP)

    def forward(self, token_BD: Tensor, tier_B: Tensor, position_B: Tensor) -> Tensor:
        """Returns the features of tokens [B, D] that were read at these tier and position indices, [B, F] float32."""
        token_BD = token_BD.to(self.offset_TPF.dtype)
        feature_BF = token_BD.new_zeros(len(token_BD), self.features)
        for position in range(len(self.projection_PDF)):
            rows = (position_B == position).nonzero()[:, 0]
            if len(rows):
                tier_R = tier_B[rows]
                feature_RF = token_BD[rows] @ self.projection_PDF[position] - self.offset_TPF[tier_R, position]
                if self.waves:
                    component_RC = token_BD[rows] @ self.direction_PDC[position] - self.centre_TPC[tier_R, position]
                    wave_RW = waves_of(component_RC, self.wave_PCW[position], self.phase_W)
                    feature_RF = feature_RF + wave_RW @ self.smooth_PWF[position]
                feature_BF[rows] = feature_RF
        return feature_BF.clamp(-CLAMP, CLAMP)


def waves_of(component_BC: Tensor, wave_CW: Tensor, phase_W: Tensor) -> Tensor:
    """Returns random Fourier features of the components, [..., W]."""
    return torch.cos(component_BC @ wave_CW + phase_W)
