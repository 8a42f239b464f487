"""Cross-fitting: the division of the training samples into folds, and a basis without each fold's samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...controllers.bases import TokenBasis, VectorBasis
from .ridge import FoldSums

FOLDS = 5

Basis = TypeVar("Basis", VectorBasis, TokenBasis)


@dataclass(frozen=True)
class FittedBasis(Generic[Basis]):
    """A basis fitted on the whole training split, for deployment, and one per fold, fitted on the other folds."""

    whole: Basis
    by_fold: tuple[Basis, ...]
    explained_F: Tensor  # share of each target's variance explained on held-out folds


def fold_of_samples(cluster_S: NDArray[np.int64], folds: int, seed: int) -> NDArray[np.int64]:
    """Returns each sample's fold, [S]; all samples of a cluster (an image) are in the same fold."""
    clusters, inverse_S = np.unique(cluster_S, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(clusters))
    return (order % max(1, min(folds, len(clusters))))[inverse_S]


def sums_by_fold(x_SD: Tensor, y_SQ: Tensor, fold_S: NDArray[np.int64]) -> FoldSums:
    """Returns the sums of ridge regression over the samples of each fold."""
    sums = FoldSums.zeros(int(fold_S.max()) + 1, x_SD.shape[1], y_SQ.shape[1])
    for fold in range(len(sums.xx_KDD)):
        rows = torch.from_numpy(np.flatnonzero(fold_S == fold))
        sums.add(fold, x_SD[rows], y_SQ[rows])
    return sums
