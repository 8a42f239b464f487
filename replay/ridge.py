"""Ridge regression from sums of squares alone, cross-validated by fold. Knows nothing of caches or controllers.

Shapes: K folds, D inputs, Q targets. A fold's sums suffice for its fit and for its error, so the rows (gigabytes of
tokens) are read once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

PENALTIES = (1e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 10.0, 100.0)  # times the mean diagonal of x'x
NOTHING = 1e-6  # share of the largest target's variance below which one is rounding error


@dataclass
class FoldSums:
    """Sums over the rows of each fold; inputs and targets centred by the caller."""

    xx_KDD: Tensor
    xy_KDQ: Tensor
    yy_KQ: Tensor
    rows: int = 0

    @classmethod
    def zeros(cls, folds: int, inputs: int, targets: int) -> FoldSums:
        return cls(torch.zeros(folds, inputs, inputs), torch.zeros(folds, inputs, targets), torch.zeros(folds, targets))

    def add(self, fold: int, x_RD: Tensor, y_RQ: Tensor) -> None:
        self.xx_KDD[fold].addmm_(x_RD.T, x_RD)
        self.xy_KDQ[fold].addmm_(x_RD.T, y_RQ)
        self.yy_KQ[fold] += y_RQ.square().sum(dim=0)
        self.rows += len(x_RD)

    def plus(self, other: FoldSums) -> FoldSums:
        sums = (self.xx_KDD + other.xx_KDD, self.xy_KDQ + other.xy_KDQ, self.yy_KQ + other.yy_KQ)
        return FoldSums(*sums, self.rows + other.rows)


@dataclass(frozen=True)
class RidgeFit:
    """Weights from all rows, and from all rows but one fold's.

    `explained_Q` is the share of each target's variance that the held-out fits explain, at the penalty chosen for it;
    0 at best for a target that the inputs do not reveal.
    """

    weight_DQ: Tensor
    weight_KDQ: Tensor
    explained_Q: Tensor


def fit_ridge(sums: FoldSums, start: RidgeFit | None = None, penalties: tuple[float, ...] = PENALTIES) -> RidgeFit:
    """Fits each target with the penalty that predicts held-out folds best.

    `start` is what weights are shrunk towards (instead of 0): a fit to more rows of a related kind. With one fold
    there is nothing to hold out, and the largest penalty is taken.
    """
    folds, inputs, targets = sums.xy_KDQ.shape
    xx_DD, xy_DQ = sums.xx_KDD.sum(dim=0).double(), sums.xy_KDQ.sum(dim=0).double()
    scale = float(xx_DD.diagonal().mean()) or 1.0
    identity_DD = torch.eye(inputs, dtype=torch.float64)
    error_LQ = torch.zeros(len(penalties), targets, dtype=torch.float64)
    held_LKDQ = torch.zeros(len(penalties), folds, inputs, targets, dtype=torch.float32)
    for fold in range(folds):
        fold_xx_DD, fold_xy_DQ = sums.xx_KDD[fold].double(), sums.xy_KDQ[fold].double()
        rest_DD, rest_DQ = xx_DD - fold_xx_DD, xy_DQ - fold_xy_DQ
        start_DQ = torch.zeros(inputs, targets).double() if start is None else start.weight_KDQ[fold].double()
        gradient_DQ = rest_DQ - rest_DD @ start_DQ
        for index, penalty in enumerate(penalties):
            factor_DD = torch.linalg.cholesky(rest_DD + penalty * scale * identity_DD)
            weight_DQ = start_DQ + torch.cholesky_solve(gradient_DQ, factor_DD)
            held_LKDQ[index, fold] = weight_DQ.float()
            fitted_Q = (weight_DQ * (fold_xx_DD @ weight_DQ)).sum(dim=0)
            error_LQ[index] += sums.yy_KQ[fold] - 2 * (weight_DQ * fold_xy_DQ).sum(dim=0) + fitted_Q
    best_Q = error_LQ.argmin(dim=0) if folds > 1 else torch.full((targets,), len(penalties) - 1)
    weight_DQ = torch.zeros(inputs, targets, dtype=torch.float64)
    start_DQ = torch.zeros(inputs, targets).double() if start is None else start.weight_DQ.double()
    for index in best_Q.unique().tolist():
        factor_DD = torch.linalg.cholesky(xx_DD + penalties[index] * scale * identity_DD)
        chosen_Q = best_Q == index
        solved_DQ = start_DQ[:, chosen_Q] + torch.cholesky_solve((xy_DQ - xx_DD @ start_DQ)[:, chosen_Q], factor_DD)
        weight_DQ[:, chosen_Q] = solved_DQ
    weight_KDQ = held_LKDQ.permute(0, 3, 1, 2)[best_Q, torch.arange(targets)].permute(1, 2, 0).contiguous()
    total_Q = sums.yy_KQ.sum(dim=0).double()
    error_Q = error_LQ.gather(0, best_Q[None])[0]
    explained_Q = (1.0 - error_Q / total_Q.clamp(min=1e-30)).clamp(0.0, 1.0)
    explained_Q[total_Q <= NOTHING * float(total_Q.max())] = 0.0  # what does not vary needs no explaining
    return RidgeFit(weight_DQ.float(), weight_KDQ, explained_Q.float())
