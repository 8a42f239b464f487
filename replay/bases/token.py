"""The basis of Stage2's token input: one regression per insertion position, shrunk towards one over all positions.

Shapes: T tiers, P insertion positions, M budgets, D = d_model, K folds, Q targets, F features, W waves, C components,
S training samples, N tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...controllers.bases import TokenBasis, waves_of
from ...controllers.stage2 import TOKEN_WAVES
from ..tables import ReplayTables
from .budget import BUDGET_WAVES, budget_waves
from .folds import FittedBasis
from .fourier import Directions, draw_waves, leading_directions
from .ridge import FoldSums, RidgeFit, fit_ridge
from .targets import feature_parts, outcome_targets
from .token_rows import MOMENT_SAMPLES, TokenMoments, TokenRows, token_moments, token_rows

POSITION_PENALTIES = (1e-2, 1e-1, 1.0, 10.0, 1000.0)  # the last one almost equals the fit over all positions

ReadTokens = Callable[[], Iterator[TokenRows]]  # one pass over the training split, the same tokens every time


@dataclass(frozen=True)
class _Targets:
    """What tokens predict: outcomes [T, P, S, Q], their leading components, and smooth functions of the budget."""

    outcome_TPSQ: Tensor
    leading_TPSQ: Tensor
    wave_MQ: Tensor


@dataclass(frozen=True)
class _LinearPart:
    """The regressions on the tokens themselves, one per position; inputs are divided by `spread_D`."""

    pooled: RidgeFit  # over all positions
    fits: list[RidgeFit]
    gain_Q: Tensor  # of the pooled fit, not yet relative to the best target
    spread_D: Tensor
    directions: list[Directions]  # of each position's tokens, divided by that position's spread


@dataclass(frozen=True)
class _SmoothPart:
    """The regressions on random Fourier features of the tokens' leading components, one per position."""

    fits: list[RidgeFit]
    sums: list[FoldSums]
    direction_PDC: Tensor
    wave_PCW: Tensor
    phase_W: Tensor


def fit_token_basis(
    tables: ReplayTables,
    fold_S: NDArray[np.int64],
    features: int,
    rows_per_place: int,
    seed: int,
    moment_samples: int = MOMENT_SAMPLES,
) -> FittedBasis[TokenBasis]:
    """Returns the basis fitted on the samples of `train`, whose folds are `fold_S`.

    Args:
        rows_per_place: budgets drawn for each sample, tier and position.
        seed: of these draws.
        moment_samples: training samples that the tokens' mean and spread are computed from, at most.
    """

    def read() -> Iterator[TokenRows]:
        return token_rows(tables, fold_S, rows_per_place, np.random.default_rng(seed))

    linear_width, smooth_width = feature_parts(features)
    folds = int(fold_S.max()) + 1
    targets = _targets(tables, linear_width - BUDGET_WAVES, smooth_width)
    moments = token_moments(tables, moment_samples)
    linear = _fit_linear(read, targets, moments, folds)
    smooth = _fit_smooth(read, targets, moments, folds, linear.directions)

    outcomes, waves = targets.outcome_TPSQ.shape[-1], targets.wave_MQ.shape[1]
    smooth_explained_Q = torch.stack([fit.explained_Q for fit in smooth.fits]).mean(dim=0)
    # A budget can always be read from a token and an outcome never entirely, so each has its own best.
    best = max(float(linear.pooled.explained_Q[:outcomes].max()), float(smooth_explained_Q.max()))
    best_wave = float(linear.pooled.explained_Q[outcomes:].max())
    best_Q = torch.tensor([best] * outcomes + [best_wave] * waves)
    gain_Q = linear.gain_Q / best_Q.clamp(min=1e-12).sqrt()
    smooth_gain_PQ = [fit.gains(sums, best) for fit, sums in zip(smooth.fits, smooth.sums, strict=True)]
    tiers, positions = moments.mean_TPD.shape[:2]

    def basis(weights: list[Tensor], smooth_weights: list[Tensor]) -> TokenBasis:
        made = TokenBasis(tables.d_model, features, tiers, positions, TOKEN_WAVES)
        made.direction_PDC.copy_(smooth.direction_PDC)
        made.centre_TPC.copy_(torch.einsum("tpd,pdc->tpc", moments.mean_TPD, smooth.direction_PDC))
        made.wave_PCW.copy_(smooth.wave_PCW)
        made.phase_W.copy_(smooth.phase_W)
        for position, (weight_DQ, smooth_WQ) in enumerate(zip(weights, smooth_weights, strict=True)):
            scaled_DQ = weight_DQ * gain_Q / linear.spread_D[:, None]
            made.projection_PDF[position, :, : scaled_DQ.shape[1]] = scaled_DQ
            made.offset_TPF[:, position] = moments.mean_TPD[:, position] @ made.projection_PDF[position]
            columns = slice(linear_width, linear_width + smooth_WQ.shape[1])
            made.smooth_PWF[position, :, columns] = smooth_WQ * smooth_gain_PQ[position]
        return made

    by_fold = tuple(
        basis([fit.weight_KDQ[fold] for fit in linear.fits], [fit.weight_KDQ[fold] for fit in smooth.fits])
        for fold in range(folds)
    )
    explained_F = torch.zeros(features)
    explained_F[: outcomes + waves] = torch.stack([fit.explained_Q for fit in linear.fits]).mean(dim=0)
    explained_F[linear_width : linear_width + len(smooth_explained_Q)] = smooth_explained_Q
    whole = basis([fit.weight_DQ for fit in linear.fits], [fit.weight_DQ for fit in smooth.fits])
    return FittedBasis(whole, by_fold, explained_F)


def _targets(tables: ReplayTables, linear: int, smooth: int) -> _Targets:
    """Returns the outcomes of Stage2's choices, relative to their mean over samples, and the budget's waves.

    The components are shared by all tiers and positions.
    """
    rows = torch.from_numpy(tables.indices("train"))
    shape = (len(tables.space.tiers), len(tables.space.insertion_positions))

    def centred_RA(value_SX: Tensor) -> Tensor:
        value_SJA = torch.from_numpy(tables.space.by_choice(value_SX[rows].numpy(), math.nan))
        known_SJA = torch.isfinite(value_SJA)
        mean_JA = value_SJA.nan_to_num(nan=0.0).sum(dim=0) / known_SJA.sum(dim=0).clamp(min=1)
        return (value_SJA - mean_JA).transpose(0, 1).flatten(0, 1)

    accuracy_RA, log_latency_RA = (
        centred_RA(torch.from_numpy(tables.accuracy_SX)),
        centred_RA(torch.from_numpy(tables.latency_ms_SX).log()),
    )
    outcome_RQ, leading_RQ = outcome_targets(accuracy_RA, log_latency_RA, linear, smooth)
    low_ms, high_ms = float(tables.budgets_ms_M.min()), float(tables.budgets_ms_M.max())
    wave_MQ = budget_waves(torch.from_numpy(tables.budgets_ms_M), low_ms, high_ms)
    return _Targets(
        outcome_RQ.unflatten(0, (*shape, len(rows))),
        leading_RQ.unflatten(0, (*shape, len(rows))),
        wave_MQ - wave_MQ.mean(dim=0),
    )


def _fit_linear(read: ReadTokens, targets: _Targets, moments: TokenMoments, folds: int) -> _LinearPart:
    """Fits outcomes and budget waves on the tokens.

    The sums take 17 MB per fold and position at d_model 2048; they are freed before the tokens are read again.
    """
    mean_TPD, spread_PD = moments.mean_TPD, moments.spread_PD
    positions, d_model = spread_PD.shape
    width = targets.outcome_TPSQ.shape[-1] + targets.wave_MQ.shape[1]
    by_position = [FoldSums.zeros(folds, d_model, width) for _ in range(positions)]
    for rows in read():
        x_ND = (rows.token_ND - mean_TPD[rows.tier, rows.position]) / spread_PD[rows.position]
        outcome_NQ = targets.outcome_TPSQ[rows.tier, rows.position][rows.sample_N]
        by_position[rows.position].add(rows.fold, x_ND, torch.cat([outcome_NQ, targets.wave_MQ[rows.budget_N]], dim=1))
    # Without the directions that distinguish budgets: they are the largest and independent of the sample.
    directions = [
        leading_directions(sums.xx_KDD.sum(dim=0), sums.rows, moments.budget_PMD[position] / spread_PD[position])
        for position, sums in enumerate(by_position)
    ]
    # One scale for all positions, so that a weight means the same at each of them.
    spread_D = spread_PD.square().mean(dim=0).sqrt()
    for sums, own_D in zip(by_position, spread_PD, strict=True):
        ratio_D = own_D / spread_D
        sums.xx_KDD *= ratio_D[:, None] * ratio_D
        sums.xy_KDQ *= ratio_D[:, None]
    pooled_sums = FoldSums.zeros(folds, d_model, width)
    for sums in by_position:
        pooled_sums.include(sums)
    pooled = fit_ridge(pooled_sums)
    fits = [fit_ridge(sums, pooled, POSITION_PENALTIES) for sums in by_position] if positions > 1 else [pooled]
    return _LinearPart(pooled, fits, pooled.gains(pooled_sums, 1.0), spread_D, directions)


def _fit_smooth(
    read: ReadTokens, targets: _Targets, moments: TokenMoments, folds: int, directions: list[Directions]
) -> _SmoothPart:
    """Fits the leading components of the outcomes on random Fourier features of the tokens."""
    phase_W = draw_waves(directions[0].variance_C, TOKEN_WAVES)[1]
    wave_PCW = torch.stack([draw_waves(found.variance_C, TOKEN_WAVES)[0] for found in directions])
    direction_PDC = torch.stack([found.vector_DC for found in directions]) / moments.spread_PD[:, :, None]
    leading_TPSQ = targets.leading_TPSQ
    sums = [FoldSums.zeros(folds, TOKEN_WAVES, leading_TPSQ.shape[-1]) for _ in directions]
    for rows in read():
        component_NC = (rows.token_ND - moments.mean_TPD[rows.tier, rows.position]) @ direction_PDC[rows.position]
        wave_NW = waves_of(component_NC, wave_PCW[rows.position], phase_W)
        sums[rows.position].add(rows.fold, wave_NW, leading_TPSQ[rows.tier, rows.position][rows.sample_N])
    return _SmoothPart([fit_ridge(part) for part in sums], sums, direction_PDC, wave_PCW, phase_W)
