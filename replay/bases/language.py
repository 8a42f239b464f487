"""The basis of Stage1's language input. Shapes: S training samples, D inputs, Q targets, F features, W waves."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...controllers.bases import VectorBasis, waves_of
from ...controllers.stage1 import LANGUAGE_WAVES
from ..tables import ReplayTables
from .folds import FittedBasis, sums_by_fold
from .fourier import draw_waves, leading_directions
from .ridge import fit_ridge
from .targets import feature_parts, outcome_targets


def fit_language_basis(tables: ReplayTables, fold_S: NDArray[np.int64], features: int) -> FittedBasis[VectorBasis]:
    """Returns the basis fitted on the samples of `train`, whose folds are `fold_S`."""
    rows = torch.from_numpy(tables.indices("train"))
    linear, smooth = feature_parts(features)
    y_SQ, leading_SQ = outcome_targets(
        torch.from_numpy(tables.accuracy_SX)[rows], torch.from_numpy(tables.latency_ms_SX)[rows].log(), linear, smooth
    )
    x_SD = torch.from_numpy(tables.language_feature_SD)[rows].float()
    mean_D, spread_D = x_SD.mean(dim=0), _spread(x_SD)
    x_SD = (x_SD - mean_D) / spread_D
    sums = sums_by_fold(x_SD, y_SQ, fold_S)
    fit = fit_ridge(sums)
    directions = leading_directions(sums.xx_KDD.sum(dim=0), len(x_SD))
    waves = draw_waves(directions.variance_C, LANGUAGE_WAVES)
    wave_SW = waves_of(x_SD @ directions.vector_DC, *waves)
    smooth_sums = sums_by_fold(wave_SW, leading_SQ, fold_S)
    smooth_fit = fit_ridge(smooth_sums)
    best = float(torch.cat([fit.explained_Q, smooth_fit.explained_Q]).max())
    gain_Q, smooth_gain_Q = fit.gains(sums, best), smooth_fit.gains(smooth_sums, best)

    def basis(weight_DQ: Tensor, smooth_WQ: Tensor) -> VectorBasis:
        made = VectorBasis(x_SD.shape[1], features, LANGUAGE_WAVES)
        made.mean_D.copy_(mean_D)
        made.projection_DF[:, : weight_DQ.shape[1]] = weight_DQ * gain_Q / spread_D[:, None]
        made.direction_DC.copy_(directions.vector_DC / spread_D[:, None])
        made.wave_CW.copy_(waves[0])
        made.phase_W.copy_(waves[1])
        made.smooth_WF[:, linear : linear + smooth_WQ.shape[1]] = smooth_WQ * smooth_gain_Q
        return made

    explained_F = torch.zeros(features)
    explained_F[: len(fit.explained_Q)] = fit.explained_Q
    explained_F[linear : linear + len(smooth_fit.explained_Q)] = smooth_fit.explained_Q
    by_fold = tuple(basis(*weights) for weights in zip(fit.weight_KDQ, smooth_fit.weight_KDQ, strict=True))
    return FittedBasis(basis(fit.weight_DQ, smooth_fit.weight_DQ), by_fold, explained_F)


def _spread(x_SD: Tensor) -> Tensor:
    """Returns the standard deviation of each column, 1 for a constant column."""
    spread_D = x_SD.std(dim=0, correction=0)
    return torch.where(spread_D > 1e-6, spread_D, torch.ones(()))
