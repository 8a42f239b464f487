"""Ridge regression from sums of squares and products, cross-validated by fold; independent of caches and controllers.

Shapes: K folds, D inputs, Q targets, L penalties. The sums of a fold are enough for both its fit and its error, so the
rows (gigabytes of tokens) are read once. One eigendecomposition serves all penalties.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

PENALTIES = (1e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 10.0, 100.0)  # relative to the mean diagonal of x'x
MIN_VARIANCE_SHARE = 1e-6  # targets with less of the largest target's variance are rounding error


@dataclass
class FoldSums:
    """Sums of products over the rows of each fold; the caller centres inputs and targets."""

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
    """Weights fitted to all rows, and to all rows outside each fold."""

    weight_DQ: Tensor
    weight_KDQ: Tensor
    explained_Q: Tensor  # share of each target's variance explained on held-out folds, in [0, 1]

    def gains(self, sums: FoldSums, best: float) -> Tensor:
        """Returns the factor of each target's feature, [Q], which gives it the standard deviation sqrt(explained/best).

        A feature without predictive value on held-out folds fades; normalised, it would be as large as the others.
        `best` is the largest explained share among the features that the controllers compare.
        """
        variance_Q = (self.weight_DQ * (sums.xx_KDD.sum(dim=0) @ self.weight_DQ)).sum(dim=0) / max(1, sums.rows)
        return (self.explained_Q / max(best, 1e-12)).sqrt() / variance_Q.sqrt().clamp(min=1e-12)


def fit_ridge(sums: FoldSums, start: RidgeFit | None = None, penalties: tuple[float, ...] = PENALTIES) -> RidgeFit:
    """Fits each target with the penalty that gives the smallest error on held-out folds.

    Args:
        start: weights are shrunk towards those of this fit, to more rows of a related kind, instead of towards 0.
        penalties: candidates, ascending; with a single fold there is no held-out error, and the last one is used.
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
    explained_Q[total_Q <= MIN_VARIANCE_SHARE * float(total_Q.max())] = 0.0  # a constant has no variance to explain
    return RidgeFit(weight_DQ, weight_KDQ, explained_Q.float())


def _solutions(xx_DD: Tensor, xy_DQ: Tensor, ridge_L: Tensor, start_DQ: Tensor | None) -> Tensor:
    """Returns the weights for every penalty, [L, D, Q].

    The rounding error of eigenvalues is about 1e-7 of the largest, and makes some negative if there are fewer rows than
    inputs; the smallest penalty, a thousandth of their mean, is well above it.
    """
    value_D, vector_DD = torch.linalg.eigh(xx_DD)
    gradient_DQ = xy_DQ if start_DQ is None else xy_DQ - xx_DD @ start_DQ
    rotated_DQ = vector_DD.T @ gradient_DQ
    damped_LDQ = rotated_DQ / (value_D.clamp(min=0.0) + ridge_L[:, None])[:, :, None]
    found_LDQ = vector_DD @ damped_LDQ
    return found_LDQ if start_DQ is None else start_DQ + found_LDQ
