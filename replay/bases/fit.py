"""Fits the frozen input bases on the training split, in closed form.

The directions that matter are those from which outcomes can be predicted, not those that vary most: tokens vary most
along budget, position and noise. So each basis is a ridge regression from the inputs to the leading components of what
every setting yields (accuracy, log latency) and, for tokens, to smooth functions of the budget that they carry.
Training samples get their features from fits that did not see them (cross-fitting), or the controllers would
trust features that fit the training samples' luck. Shapes: S samples, X settings, K folds, Q targets, F features.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...controllers.bases import COMPONENTS, TokenBasis, VectorBasis, waves_of
from ...controllers.budget_encoder import BudgetEncoder
from ...controllers.stage1 import LANGUAGE_WAVES
from ...controllers.stage2 import TOKEN_WAVES
from ..tables import ReplayTables
from .ridge import FoldSums, RidgeFit, fit_ridge

FOLDS = 5
SAMPLES_AT_ONCE = 64
MOMENT_SAMPLES = 1024
BUDGET_WAVES = 8
SMOOTH_SHARE = 3  # every third feature is of the smooth part
LEADING = 8  # components that half of the waves keep to
POSITION_PENALTIES = (1e-2, 1e-1, 1.0, 10.0, 1000.0)  # the last all but keeps to the fit of all positions


@dataclass(frozen=True)
class FittedBasis:
    """A basis for deployment (fitted on the whole training split) and one for each fold's own samples."""

    whole: VectorBasis | TokenBasis
    by_fold: tuple[VectorBasis | TokenBasis, ...]
    explained_F: Tensor  # share of each target's variance explained on held-out folds


def fold_of_samples(cluster_S: NDArray[np.int64], folds: int, seed: int) -> NDArray[np.int64]:
    """Returns each sample's fold, [S]; samples of one image share one."""
    clusters, inverse_S = np.unique(cluster_S, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(clusters))
    return (order % max(1, min(folds, len(clusters))))[inverse_S]


def principal_targets(value_SX: Tensor, count: int) -> Tensor:
    """Returns the leading principal components of the columns, [S, min(count, X)]; holes count as their column's mean.

    All are scaled by one number, so that together they have variance 1: a component keeps its share.
    """
    known_SX = torch.isfinite(value_SX)
    mean_X = value_SX.nan_to_num(nan=0.0).sum(dim=0) / known_SX.sum(dim=0).clamp(min=1)
    centred_SX = torch.where(known_SX, value_SX - mean_X, torch.zeros(())).double()
    variance_C, vector_XC = torch.linalg.eigh(centred_SX.T @ centred_SX)
    vector_XC = vector_XC.flip(1)[:, :count]
    vector_XC = vector_XC * torch.where(vector_XC.sum(dim=0) < 0, -1.0, 1.0)  # eigenvectors have no sign of their own
    total = float(variance_C.clamp(min=0).sum()) / max(1, len(value_SX))
    return (centred_SX @ vector_XC / math.sqrt(total or 1.0)).float()


def budget_waves(budget_ms_B: Tensor, low_ms: float, high_ms: float) -> Tensor:
    """Returns smooth functions of the budget, [B, 8]: cosines of its place on the grid's logarithmic scale.

    They interpolate between the grid's budgets, which a live caller may do.
    """
    place_B = torch.log2(budget_ms_B / low_ms) / max(math.log2(high_ms / low_ms), 1e-6)
    waves_W = torch.arange(1, BUDGET_WAVES + 1)
    return torch.cos(math.pi * place_B[:, None] * waves_W)


def fit_budget_basis(encoder: BudgetEncoder, budgets_ms_M: Tensor, features: int) -> VectorBasis:
    """Returns the basis of Stage1's budget input: ridge from the encoded budget to its waves, over a dense grid.

    It needs no samples, and so no folds.
    """
    low_ms, high_ms = float(budgets_ms_M.min()), float(budgets_ms_M.max())
    steps = torch.linspace(-0.1, 1.1, 481) * max(math.log2(high_ms / low_ms), 0.1) + math.log2(low_ms)
    dense_B = torch.cat([steps.exp2(), budgets_ms_M.repeat(8)])
    x_BD = encoder(dense_B)
    y_BQ = budget_waves(dense_B.clamp(low_ms, high_ms), low_ms, high_ms)
    mean_D = x_BD.mean(dim=0)
    centred_BD = (x_BD - mean_D).double()
    gram_BB = centred_BD @ centred_BD.T  # as many rows as columns or fewer: the dual form is the small one
    gram_BB += 1e-4 * gram_BB.diagonal().mean() * torch.eye(len(gram_BB))
    weight_DQ = (centred_BD.T @ torch.linalg.solve(gram_BB, (y_BQ - y_BQ.mean(dim=0)).double())).float()
    basis = VectorBasis(encoder.d_model, features)
    basis.mean_D.copy_(mean_D)
    basis.projection_DF[:, : weight_DQ.shape[1]] = weight_DQ / 0.7  # a cosine's standard deviation
    return basis


def fit_language_basis(tables: ReplayTables, fold_S: NDArray[np.int64], features: int) -> FittedBasis:
    """Returns the basis of Stage1's language input."""
    rows = torch.from_numpy(tables.indices("train"))
    x_SD = torch.from_numpy(tables.language_feature_SD)[rows].float()
    smooth = features // SMOOTH_SHARE
    linear = features - smooth
    accuracy_SC = principal_targets(torch.from_numpy(tables.accuracy_SX)[rows], linear - linear // 3)
    latency_SC = principal_targets(torch.from_numpy(tables.latency_ms_SX)[rows].log(), linear // 3)
    y_SQ = torch.cat([accuracy_SC, latency_SC], dim=1)
    leading_SQ = torch.cat([accuracy_SC[:, : smooth - smooth // 3], latency_SC[:, : smooth // 3]], dim=1)
    mean_D, spread_D = x_SD.mean(dim=0), _spread(x_SD)
    x_SD = (x_SD - mean_D) / spread_D
    sums = _sums_by_fold(x_SD, y_SQ, fold_S)
    fit = fit_ridge(sums)
    directions = leading_directions(sums.xx_KDD.sum(dim=0), len(x_SD))
    waves = draw_waves(directions.variance_C, LANGUAGE_WAVES)
    wave_SW = waves_of(x_SD @ directions.vector_DC, *waves)
    smooth_sums = _sums_by_fold(wave_SW, leading_SQ, fold_S)
    smooth_fit = fit_ridge(smooth_sums)
    best = float(torch.cat([fit.explained_Q, smooth_fit.explained_Q]).max())
    gain_Q, smooth_gain_Q = _gains(fit, sums, best), _gains(smooth_fit, smooth_sums, best)

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


def fit_token_basis(
    tables: ReplayTables, fold_S: NDArray[np.int64], features: int, rows_per_place: int, seed: int
) -> FittedBasis:
    """Returns the basis of Stage2's token input: one regression per position, shrunk towards that of all positions.

    The smooth part reads components without the directions that tell budgets apart: these are the largest, and tell
    nothing about the sample.
    """
    smooth = features // SMOOTH_SHARE
    linear = features - smooth
    accuracy_TP, latency_TP = _token_targets(tables, linear - BUDGET_WAVES)
    targets_TP = torch.cat([accuracy_TP, latency_TP], dim=-1)
    leading_TP = torch.cat([accuracy_TP[..., : smooth - smooth // 3], latency_TP[..., : smooth // 3]], dim=-1)
    tiers, positions = len(tables.space.tiers), len(tables.space.insertion_positions)
    low_ms, high_ms = float(tables.budgets_ms_M.min()), float(tables.budgets_ms_M.max())
    wave_MQ = budget_waves(torch.from_numpy(tables.budgets_ms_M), low_ms, high_ms)
    wave_MQ = wave_MQ - wave_MQ.mean(dim=0)
    moments = _token_moments(tables)
    mean_TPD, spread_PD = moments.mean_TPD, moments.spread_PD
    width = targets_TP.shape[-1] + wave_MQ.shape[1]
    folds = int(fold_S.max()) + 1
    by_position = [FoldSums.zeros(folds, tables.d_model, width) for _ in range(positions)]
    for rows in _token_rows(tables, fold_S, rows_per_place, np.random.default_rng(seed)):
        x_ND = (rows.token_ND - mean_TPD[rows.tier, rows.position]) / spread_PD[rows.position]
        y_NQ = torch.cat([targets_TP[rows.tier, rows.position][rows.sample_N], wave_MQ[rows.budget_N]], dim=1)
        by_position[rows.position].add(rows.fold, x_ND, y_NQ)
    directions = [
        leading_directions(sums.xx_KDD.sum(dim=0), sums.rows, moments.budget_PMD[position] / spread_PD[position])
        for position, sums in enumerate(by_position)
    ]
    # One scale for all positions, or weights of one would mean another thing at the next.
    spread_D = spread_PD.square().mean(dim=0).sqrt()
    for sums, own_D in zip(by_position, spread_PD, strict=True):
        ratio_D = own_D / spread_D
        sums.xx_KDD *= ratio_D[:, None] * ratio_D
        sums.xy_KDQ *= ratio_D[:, None]
    pooled_sums = FoldSums.zeros(folds, tables.d_model, width)
    for sums in by_position:
        pooled_sums.include(sums)
    pooled = fit_ridge(pooled_sums)
    fits = [fit_ridge(sums, pooled, POSITION_PENALTIES) for sums in by_position] if positions > 1 else [pooled]
    told = targets_TP.shape[-1]
    linear_gain_Q = _gains(pooled, pooled_sums, 1.0)
    del by_position, pooled_sums, sums  # 17 MB a fold and position at d_model 2048, and the tokens come by once more

    phase_W = draw_waves(directions[0].variance_C, TOKEN_WAVES)[1]
    wave_PCW = torch.stack([draw_waves(found.variance_C, TOKEN_WAVES)[0] for found in directions])
    direction_PDC = torch.stack([d.vector_DC for d in directions]) / spread_PD[:, :, None]
    smooth_sums = [FoldSums.zeros(folds, TOKEN_WAVES, leading_TP.shape[-1]) for _ in range(positions)]
    for rows in _token_rows(tables, fold_S, rows_per_place, np.random.default_rng(seed)):
        component_NC = (rows.token_ND - mean_TPD[rows.tier, rows.position]) @ direction_PDC[rows.position]
        wave_NW = waves_of(component_NC, wave_PCW[rows.position], phase_W)
        smooth_sums[rows.position].add(rows.fold, wave_NW, leading_TP[rows.tier, rows.position][rows.sample_N])
    smooth_fits = [fit_ridge(sums) for sums in smooth_sums]
    smooth_Q = torch.stack([fit.explained_Q for fit in smooth_fits]).mean(dim=0)
    best = max(float(pooled.explained_Q[:told].max()), float(smooth_Q.max()))
    best_wave = float(pooled.explained_Q[told:].max())
    best_Q = torch.tensor([best] * told + [best_wave] * (width - told))
    gain_Q = linear_gain_Q / best_Q.clamp(min=1e-12).sqrt()
    smooth_gain_PQ = [_gains(fit, sums, best) for fit, sums in zip(smooth_fits, smooth_sums, strict=True)]

    def basis(weights: list[Tensor], smooth_weights: list[Tensor]) -> TokenBasis:
        made = TokenBasis(tables.d_model, features, tiers, positions, TOKEN_WAVES)
        made.direction_PDC.copy_(direction_PDC)
        made.centre_TPC.copy_(torch.einsum("tpd,pdc->tpc", mean_TPD, direction_PDC))
        made.wave_PCW.copy_(wave_PCW)
        made.phase_W.copy_(phase_W)
        for position, (weight_DQ, smooth_WQ) in enumerate(zip(weights, smooth_weights, strict=True)):
            scaled_DQ = weight_DQ * gain_Q / spread_D[:, None]
            made.projection_PDF[position, :, : scaled_DQ.shape[1]] = scaled_DQ
            made.offset_TPF[:, position] = mean_TPD[:, position] @ made.projection_PDF[position]
            columns = slice(linear, linear + smooth_WQ.shape[1])
            made.smooth_PWF[position, :, columns] = smooth_WQ * smooth_gain_PQ[position]
        return made

    by_fold = tuple(
        basis([fit.weight_KDQ[fold] for fit in fits], [fit.weight_KDQ[fold] for fit in smooth_fits])
        for fold in range(folds)
    )
    explained_F = torch.zeros(features)
    explained_F[:width] = torch.stack([fit.explained_Q for fit in fits]).mean(dim=0)
    explained_F[linear : linear + len(smooth_Q)] = smooth_Q
    whole = basis([fit.weight_DQ for fit in fits], [fit.weight_DQ for fit in smooth_fits])
    return FittedBasis(whole, by_fold, explained_F)


@dataclass(frozen=True)
class Directions:
    """Leading components of inputs: orthonormal columns [D, C], 0 where there are fewer, and variances [C]."""

    vector_DC: Tensor
    variance_C: Tensor


def leading_directions(xx_DD: Tensor, rows: int, without_BD: Tensor | None = None) -> Directions:
    """Returns the directions along which the inputs, given by their sums, vary most; none within the span of some."""
    if without_BD is not None:
        _, strength_B, span_BD = torch.linalg.svd(without_BD, full_matrices=False)
        span_BD = span_BD[strength_B > 1e-4 * strength_B.max().clamp(min=1e-12)]
        kept_DD = torch.eye(len(xx_DD)) - span_BD.T @ span_BD
        xx_DD = kept_DD @ xx_DD @ kept_DD
    value_D, vector_DD = torch.linalg.eigh(xx_DD)
    count = min(COMPONENTS, len(xx_DD))
    vector_DC, variance_C = torch.zeros(len(xx_DD), COMPONENTS), torch.zeros(COMPONENTS)
    vector_DC[:, :count] = vector_DD.flip(1)[:, :count]
    variance_C[:count] = value_D.flip(0)[:count].clamp(min=0.0) / max(1, rows)
    seen_C = variance_C > 1e-6 * variance_C.max()  # the rest is rounding, or the span left out
    return Directions(vector_DC * seen_C, variance_C * seen_C)


def draw_waves(variance_C: Tensor, waves: int) -> tuple[Tensor, Tensor]:
    """Returns frequencies [C, W] and phases [W] of random Fourier features: a sum of two Gaussian kernels.

    Half of them read the 8 leading components alone, which neighbours go by where few directions matter, and half read
    all. A kernel's width is the root mean square distance of two samples along its components.
    """
    generator = torch.Generator().manual_seed(0)  # belongs to the basis: all runs draw the same waves
    wave_CW = torch.randn(len(variance_C), waves, generator=generator)
    wave_CW[LEADING:, : waves // 2] = 0.0
    for part, used in ((slice(0, waves // 2), LEADING), (slice(waves // 2, None), len(variance_C))):
        wave_CW[:, part] /= (2.0 * variance_C[:used].sum()).sqrt().clamp(min=1e-6)
    return wave_CW, torch.rand(waves, generator=generator) * (2 * math.pi)


def _sums_by_fold(x_SD: Tensor, y_SQ: Tensor, fold_S: NDArray[np.int64]) -> FoldSums:
    sums = FoldSums.zeros(int(fold_S.max()) + 1, x_SD.shape[1], y_SQ.shape[1])
    for fold in range(len(sums.xx_KDD)):
        mine = torch.from_numpy(np.flatnonzero(fold_S == fold))
        sums.add(fold, x_SD[mine], y_SQ[mine])
    return sums


def _token_targets(tables: ReplayTables, count: int) -> tuple[Tensor, Tensor]:
    """Returns the leading components of what Stage2 decides about; one set for all places.

    Two thirds are of accuracy and one of latency, [T, P, S_train, Q] each.
    """
    rows = torch.from_numpy(tables.indices("train"))
    accuracy_SX, latency_ms_SX = torch.from_numpy(tables.accuracy_SX), torch.from_numpy(tables.latency_ms_SX)
    shape = (len(tables.space.tiers), len(tables.space.insertion_positions))
    third = count // 3
    parts = []
    for value_SX, wanted in ((accuracy_SX, count - third), (latency_ms_SX.log(), third)):
        value_SJA = torch.from_numpy(tables.space.by_choice(value_SX[rows].numpy(), math.nan))
        known_SJA = torch.isfinite(value_SJA)
        mean_JA = value_SJA.nan_to_num(nan=0.0).sum(dim=0) / known_SJA.sum(dim=0).clamp(min=1)
        rows_RA = (value_SJA - mean_JA).transpose(0, 1).flatten(0, 1)
        parts.append(principal_targets(rows_RA, wanted).unflatten(0, (*shape, len(rows))))
    return parts[0], parts[1]


@dataclass(frozen=True)
class _Moments:
    """Each place's mean token [T, P, D], the spread around it by position [P, D], and each budget's shift [P, M, D]."""

    mean_TPD: Tensor
    spread_PD: Tensor
    budget_PMD: Tensor


def _token_moments(tables: ReplayTables) -> _Moments:
    """Returns the moments on up to 1,024 samples of `train`."""
    assert tables.token_STPMD is not None
    assert tables.token_present_STPM is not None
    train_S = tables.indices("train")
    train_S = train_S[np.linspace(0, len(train_S) - 1, min(len(train_S), MOMENT_SAMPLES)).astype(np.int64)]
    tiers, positions = len(tables.space.tiers), len(tables.space.insertion_positions)
    mean_TPD = torch.zeros(tiers, positions, tables.d_model)
    square_PD = torch.zeros(positions, tables.d_model)
    budget_PMD = torch.zeros(positions, len(tables.budgets_ms_M), tables.d_model)
    for tier in range(tiers):
        for position in range(positions):
            token_SMD = torch.from_numpy(tables.token_STPMD[train_S, tier, position].astype(np.float32))
            present_SM = torch.from_numpy(tables.token_present_STPM[train_S, tier, position])
            token_RD = token_SMD[present_SM]
            if len(token_RD):
                mean_TPD[tier, position] = token_RD.mean(dim=0)
                square_PD[position] += (token_RD - mean_TPD[tier, position]).square().mean(dim=0) / tiers
            for budget in range(token_SMD.shape[1]):
                there_RD = token_SMD[present_SM[:, budget], budget]
                if len(there_RD):
                    budget_PMD[position, budget] += (there_RD.mean(dim=0) - mean_TPD[tier, position]) / tiers
    spread_PD = square_PD.sqrt()
    # What these samples do not vary in is left as it is: divided by next to nothing, the one sample elsewhere that
    # does vary would outweigh all other columns, and with them the penalties.
    return _Moments(mean_TPD, torch.where(spread_PD > 1e-6, spread_PD, torch.ones(())), budget_PMD)


@dataclass(frozen=True)
class _TokenRows:
    """Tokens of one fold, tier and position: rows of the training split [N], budget indices [N], tokens [N, D]."""

    fold: int
    tier: int
    position: int
    sample_N: Tensor
    budget_N: Tensor
    token_ND: Tensor


def _token_rows(
    tables: ReplayTables, fold_S: NDArray[np.int64], rows_per_place: int, generator: np.random.Generator
) -> Iterator[_TokenRows]:
    """Yields a few budgets of every sample and place. Samples are read whole, once: tokens may be many GB on disk."""
    train_S = tables.indices("train")
    assert tables.token_STPMD is not None
    assert tables.token_present_STPM is not None
    tiers, positions, budgets = tables.token_STPMD.shape[1:4]
    for fold in range(int(fold_S.max()) + 1):
        mine = np.flatnonzero(fold_S == fold)
        for start in range(0, len(mine), SAMPLES_AT_ONCE):
            part = mine[start : start + SAMPLES_AT_ONCE]
            token_STPMD = np.asarray(tables.token_STPMD[train_S[part]])
            present_STPM = tables.token_present_STPM[train_S[part]]
            row_N = np.repeat(np.arange(len(part)), min(rows_per_place, budgets))
            for tier, position in np.ndindex(tiers, positions):
                budget_N = generator.integers(0, budgets, len(row_N))
                keep_N = present_STPM[row_N, tier, position, budget_N]
                row, budget = row_N[keep_N], budget_N[keep_N]
                token_ND = token_STPMD[row, tier, position, budget].astype(np.float32)
                yield _TokenRows(
                    fold, tier, position, *(torch.from_numpy(array) for array in (part[row], budget, token_ND))
                )


def _spread(x_SD: Tensor) -> Tensor:
    """Returns the standard deviation of each column, 1 where it does not vary."""
    spread_D = x_SD.std(dim=0, correction=0)
    return torch.where(spread_D > 1e-6, spread_D, torch.ones(()))


def _gains(fit: RidgeFit, sums: FoldSums, best: float | None = None) -> Tensor:
    """Returns what each feature is multiplied by, [Q].

    A feature comes to have the standard deviation sqrt(explained / best explained): what predicts nothing on held-out
    folds fades, instead of being blown up to the size of what does. The best is that of the budget's waves or that of
    all the rest, linear and smooth, for a budget can always be read off a token, and an answer never.
    """
    variance_Q = (fit.weight_DQ * (sums.xx_KDD.sum(dim=0) @ fit.weight_DQ)).sum(dim=0) / max(1, sums.rows)
    best = float(fit.explained_Q.max()) if best is None else best
    return (fit.explained_Q / max(best, 1e-12)).sqrt() / variance_Q.sqrt().clamp(min=1e-12)
