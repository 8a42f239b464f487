"""The basis of Stage1's budget input. It needs no samples, and so no folds."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...controllers.bases import VectorBasis
from ...controllers.budget_encoder import BudgetEncoder

BUDGET_WAVES = 8
COSINE_STD = 0.7  # standard deviation of a cosine over whole periods, about 1 / sqrt(2)


def budget_waves(budget_ms_B: Tensor, low_ms: float, high_ms: float) -> Tensor:
    """Returns smooth functions of the budget, [B, 8]: cosines of its position on a log scale from low_ms to high_ms.

    They interpolate between the budgets of the grid: a live request may have any budget.
    """
    place_B = torch.log2(budget_ms_B / low_ms) / max(math.log2(high_ms / low_ms), 1e-6)
    waves_W = torch.arange(1, BUDGET_WAVES + 1)
    return torch.cos(math.pi * place_B[:, None] * waves_W)


def fit_budget_basis(encoder: BudgetEncoder, budgets_ms_M: Tensor, features: int) -> VectorBasis:
    """Returns the basis: ridge regression from the encoded budget to its waves, over a dense grid of budgets."""
    low_ms, high_ms = float(budgets_ms_M.min()), float(budgets_ms_M.max())
    steps = torch.linspace(-0.1, 1.1, 481) * max(math.log2(high_ms / low_ms), 0.1) + math.log2(low_ms)
    dense_B = torch.cat([steps.exp2(), budgets_ms_M.repeat(8)])
    x_BD = encoder(dense_B)
    y_BQ = budget_waves(dense_B.clamp(low_ms, high_ms), low_ms, high_ms)
    mean_D = x_BD.mean(dim=0)
    centred_BD = (x_BD - mean_D).double()
    gram_BB = centred_BD @ centred_BD.T  # the dual form is smaller: fewer rows than columns at d_model 2048
    gram_BB += 1e-4 * gram_BB.diagonal().mean() * torch.eye(len(gram_BB))
    weight_DQ = (centred_BD.T @ torch.linalg.solve(gram_BB, (y_BQ - y_BQ.mean(dim=0)).double())).float()
    basis = VectorBasis(encoder.d_model, features)
    basis.mean_D.copy_(mean_D)
    basis.projection_DF[:, : weight_DQ.shape[1]] = weight_DQ / COSINE_STD
    return basis
