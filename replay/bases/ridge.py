"""Ridge regression from sums of squares alone, cross-validated by fold. Knows nothing of caches or controllers.

Shapes: K folds, D inputs, Q targets, L penalties. A fold's sums suffice for its fit and for its error, so the rows
(gigabytes of tokens) are read once. One eigendecomposition of the inputs' sums serves every penalty.
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

    def include(self, other: FoldSums) -> None:
        """Adds the sums over other rows."""
        self.xx_KDD += other.xx_KDD
        self.xy_KDQ += other.xy_KDQ
        self.yy_KQ += other.yy_KQ
        self.rows += other.rows


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
    xx_DD, xy_DQ = sums.xx_KDD.sum(dim=0), sums.xy_KDQ.sum(dim=0)
    scale = float(xx_DD.diagonal().mean()) or 1.0
    ridge_L = torch.tensor(penalties, dtype=xx_DD.dtype) * scale
    error_LQ = torch.zeros(len(penalties), targets, dtype=torch.float64)
    held_LKDQ = torch.zeros(len(penalties), folds, inputs, targets)
    for fold in range(folds):
        rest_DD, rest_DQ = xx_DD - sums.xx_KDD[fold], xy_DQ - sums.xy_KDQ[fold]
        held_LDQ = _solutions(rest_DD, rest_DQ, ridge_L, None if start is None else start.weight_KDQ[fold])
        held_LKDQ[:, fold] = held_LDQ
        missed_LDQ = sums.xx_KDD[fold] @ held_LDQ - 2 * sums.xy_KDQ[fold]
        error_LQ += sums.yy_KQ[fold] + (held_LDQ * missed_LDQ).sum(dim=1).double()
    best_Q = error_LQ.argmin(dim=0) if folds > 1 else torch.full((targets,), len(penalties) - 1)
    every_Q = torch.arange(targets)
    weight_LDQ = _solutions(xx_DD, xy_DQ, ridge_L, None if start is None else start.weight_DQ)
    weight_DQ = weight_LDQ[best_Q, :, every_Q].T.contiguous()
    weight_KDQ = held_LKDQ.permute(0, 3, 1, 2)[best_Q, every_Q].permute(1, 2, 0).contiguous()
    total_Q = sums.yy_KQ.sum(dim=0).double()
    error_Q = error_LQ.gather(0, best_Q[None])[0]
    explained_Q = (1.0 - error_Q / total_Q.clamp(min=1e-30)).clamp(0.0, 1.0)
    explained_Q[total_Q <= NOTHING * float(total_Q.max())] = 0.0  # what does not vary needs no explaining
    return RidgeFit(weight_DQ, weight_KDQ, explained_Q.float())


def _solutions(xx_DD: Tensor, xy_DQ: Tensor, ridge_L: Tensor, start_DQ: Tensor | None) -> Tensor:
    """Returns the weights under every penalty, [L, D, Q].

    Rounding leaves eigenvalues wrong by 1e-7 of the largest, and below 0 where there are fewer rows than inputs; the
    smallest penalty is a thousandth of their mean.
    """
    value_D, vector_DD = torch.linalg.eigh(xx_DD)
    gradient_DQ = xy_DQ if start_DQ is None else xy_DQ - xx_DD @ start_DQ
    turned_DQ = vector_DD.T @ gradient_DQ
    shrunk_LDQ = turned_DQ / (value_D.clamp(min=0.0) + ridge_L[:, None])[:, :, None]
    found_LDQ = vector_DD @ shrunk_LDQ
    return found_LDQ if start_DQ is None else start_DQ + found_LDQ
