"""Stage2 (`knob2_knob3_predictor`): latency token, tier and position -> (top-k, num_blocks), within the model's run."""

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
    """Returns what tells Stage2 where its token was read, [J, T + P] float32: one-hot tier, one-hot position."""
    tier_TT, position_PP = torch.eye(tiers), torch.eye(positions)
    return torch.cat([tier_TT.repeat_interleave(positions, dim=0), position_PP.repeat(tiers, 1)], dim=1)


class Stage2(nn.Module):
    """One masked softmax over (top-k, num_blocks) pairs, top-k-major, given the pair that Stage1 chose."""

    place_JH: Tensor
    allowed_JA: Tensor  # True where some sample of the training cache has the setting

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
        """Returns log-probabilities over pairs, [B, A]; a setting that no sample has gets -inf.

        `tier_B` and `position_B` are indices into the knob space.
        """
        pair_B = tier_B * self.positions + position_B
        feature_BF = torch.cat([self.token_basis(token_BD, tier_B, position_B), self.place_JH[pair_B]], dim=1)
        return log_probs(self.head, feature_BF, self.allowed_JA[pair_B])
