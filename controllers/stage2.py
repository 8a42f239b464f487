"""Stage2 (`knob2_knob3_predictor`) runs after p blocks: latency token, tier and position p -> (top-k, num_blocks).

Shapes: B requests, D d_model, F features, T tiers, P positions, J (tier, position) pairs, A (top-k, num_blocks) pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..data.knobs import KnobSpace
from .bases import TokenBasis
from .mlp import Mlp, log_probs

TOKEN_FEATURES = 48
TOKEN_WAVES = 256  # random Fourier features behind the smooth part of the token basis
HIDDEN = (128, 80)


def place_codes(tiers: int, positions: int) -> Tensor:
    """Returns the code of each (tier, position) pair, [J, T + P] float32: one-hot tier, then one-hot position."""
    tier_TT, position_PP = torch.eye(tiers), torch.eye(positions)
    return torch.cat([tier_TT.repeat_interleave(positions, dim=0), position_PP.repeat(tiers, 1)], dim=1)


class Stage2(nn.Module):
    """One masked softmax over (top-k, num_blocks) pairs, in top-k-major order, given the pair that Stage1 chose."""

    place_JH: Tensor
    allowed_JA: Tensor  # whether any sample of the training cache has the setting

    def __init__(self, d_model: int, space: KnobSpace) -> None:
        super().__init__()
        tiers, positions = len(space.tiers), len(space.insertion_positions)
        self.positions = positions
        self.choices = len(space.top_k) * len(space.num_blocks)
        self.token_basis = TokenBasis(d_model, TOKEN_FEATURES, tiers, positions, TOKEN_WAVES)
        self.head = Mlp((TOKEN_FEATURES + tiers + positions, *HIDDEN, self.choices))
        self.register_buffer("place_JH", place_codes(tiers, positions), persistent=False)
        self.register_buffer("allowed_JA", torch.ones(tiers * positions, self.choices, dtype=torch.bool))

    def forward(self, token_BD: Tensor, tier_B: Tensor, position_B: Tensor) -> Tensor:
        """Returns log-probabilities over pairs, [B, A]; a setting that no training sample has gets -inf.

        Args:
            tier_B, position_B: indices into the knob space; the token was read there.
        """
        pair_B = tier_B * self.positions + position_B
        feature_BF = torch.cat([self.token_basis(token_BD, tier_B, position_B), self.place_JH[pair_B]], dim=1)
        return log_probs(self.head, feature_BF, self.allowed_JA[pair_B])
