"""Stage1 (`knob1_predictor`) runs before vision: language feature and encoded budget -> (tier, insertion position).

Shapes: B requests, D d_model, F features, J (tier, position) pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..data.knobs import KnobSpace
from .bases import VectorBasis
from .mlp import Mlp, log_probs

LANGUAGE_FEATURES = 48
BUDGET_FEATURES = 16
LANGUAGE_WAVES = 512  # random Fourier features behind the smooth part of the language basis
HIDDEN = (256, 160)


class Stage1(nn.Module):
    """One masked softmax over (tier, position) pairs, in tier-major order."""

    allowed_J: Tensor  # whether any sample of the training cache has a setting with this pair

    def __init__(self, d_model: int, space: KnobSpace) -> None:
        super().__init__()
        self.choices = len(space.tiers) * len(space.insertion_positions)
        self.language_basis = VectorBasis(d_model, LANGUAGE_FEATURES, LANGUAGE_WAVES)
        self.budget_basis = VectorBasis(d_model, BUDGET_FEATURES)
        self.head = Mlp((LANGUAGE_FEATURES + BUDGET_FEATURES, *HIDDEN, self.choices))
        self.register_buffer("allowed_J", torch.ones(self.choices, dtype=torch.bool))

    def forward(self, language_feature_BD: Tensor, encoded_budget_BD: Tensor) -> Tensor:
        """Returns log-probabilities over pairs, [B, J]; a pair that no training sample has gets -inf."""
        feature_BF = torch.cat([self.language_basis(language_feature_BD), self.budget_basis(encoded_budget_BD)], dim=1)
        return log_probs(self.head, feature_BF, self.allowed_J)
