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

from ..controllers.bases import TokenBasis, VectorBasis
from ..controllers.budget_encoder import BudgetEncoder
from .ridge import FoldSums, RidgeFit, fit_ridge
from .tables import ChoiceGrid, ReplayTables

FOLDS = 5
SAMPLES_AT_ONCE = 128
MOMENT_SAMPLES = 1024
BUDGET_WAVES = 8
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
    x_SD = tables.language_feature_SD[rows].float()
    third = features // 3
    y_SQ = torch.cat(
        [
            principal_targets(tables.accuracy_SX[rows], features - third),
            principal_targets(tables.latency_ms_SX[rows].log(), third),
        ],
        dim=1,
    )
    mean_D, spread_D = x_SD.mean(dim=0), _spread(x_SD)
    sums = FoldSums.zeros(int(fold_S.max()) + 1, x_SD.shape[1], y_SQ.shape[1])
    for fold in range(len(sums.xx_KDD)):
        mine = torch.from_numpy(np.flatnonzero(fold_S == fold))
        sums.add(fold, (x_SD[mine] - mean_D) / spread_D, y_SQ[mine])
    fit = fit_ridge(sums)
    gain_Q = _gains(fit, sums, y_SQ.shape[1])

    def basis(weight_DQ: Tensor) -> VectorBasis:
        made = VectorBasis(x_SD.shape[1], features)
        made.mean_D.copy_(mean_D)
        made.projection_DF[:, : weight_DQ.shape[1]] = weight_DQ * gain_Q / spread_D[:, None]
        return made

    return FittedBasis(basis(fit.weight_DQ), tuple(basis(w) for w in fit.weight_KDQ), fit.explained_Q)


def fit_token_basis(
    tables: ReplayTables, fold_S: NDArray[np.int64], features: int, rows_per_place: int, seed: int
) -> FittedBasis:
    """Returns the basis of Stage2's token input: one regression per position, shrunk towards that of all positions."""
    targets_TP = _token_targets(tables, features - BUDGET_WAVES)
    tiers, positions = len(tables.space.tiers), len(tables.space.insertion_positions)
    low_ms, high_ms = float(tables.budgets_ms_M.min()), float(tables.budgets_ms_M.max())
    wave_MQ = budget_waves(tables.budgets_ms_M, low_ms, high_ms)
    wave_MQ = wave_MQ - wave_MQ.mean(dim=0)
    mean_TPD, spread_PD = _token_moments(tables)
    width = targets_TP.shape[-1] + wave_MQ.shape[1]
    folds = int(fold_S.max()) + 1
    by_position = [FoldSums.zeros(folds, tables.d_model, width) for _ in range(positions)]
    for rows in _token_rows(tables, fold_S, rows_per_place, np.random.default_rng(seed)):
        x_ND = (rows.token_ND - mean_TPD[rows.tier, rows.position]) / spread_PD[rows.position]
        y_NQ = torch.cat([targets_TP[rows.tier, rows.position][rows.sample_N], wave_MQ[rows.budget_N]], dim=1)
        by_position[rows.position].add(rows.fold, x_ND, y_NQ)
    # One scale for all positions, or weights of one would mean another thing at the next.
    spread_D = spread_PD.square().mean(dim=0).sqrt()
    for sums, own_D in zip(by_position, spread_PD, strict=True):
        ratio_D = own_D / spread_D
        sums.xx_KDD *= ratio_D[:, None] * ratio_D
        sums.xy_KDQ *= ratio_D[:, None]
    pooled_sums = by_position[0]
    for sums in by_position[1:]:
        pooled_sums = pooled_sums.plus(sums)
    pooled = fit_ridge(pooled_sums)
    fits = [fit_ridge(sums, pooled, POSITION_PENALTIES) for sums in by_position] if positions > 1 else [pooled]
    gain_Q = _gains(pooled, pooled_sums, targets_TP.shape[-1])

    def basis(weights: list[Tensor]) -> TokenBasis:
        made = TokenBasis(tables.d_model, features, tiers, positions)
        for position, weight_DQ in enumerate(weights):
            scaled_DQ = weight_DQ * gain_Q / spread_D[:, None]
            made.projection_PDF[position, :, : scaled_DQ.shape[1]] = scaled_DQ
            made.offset_TPF[:, position] = mean_TPD[:, position] @ made.projection_PDF[position]
        return made

    by_fold = tuple(basis([fit.weight_KDQ[fold] for fit in fits]) for fold in range(folds))
    explained_Q = torch.stack([fit.explained_Q for fit in fits]).mean(dim=0)
    return FittedBasis(basis([fit.weight_DQ for fit in fits]), by_fold, explained_Q)


def _token_targets(tables: ReplayTables, count: int) -> Tensor:
    """Returns the leading components of what Stage2 decides about, [T, P, S_train, Q]; one set for all places."""
    rows = torch.from_numpy(tables.indices("train"))
    grid = ChoiceGrid.of(tables.space)
    shape = (len(tables.space.tiers), len(tables.space.insertion_positions))
    third = count // 3
    parts = []
    for value_SX, wanted in ((tables.accuracy_SX, count - third), (tables.latency_ms_SX.log(), third)):
        value_SJA = grid.spread(value_SX[rows], math.nan)
        known_SJA = torch.isfinite(value_SJA)
        mean_JA = value_SJA.nan_to_num(nan=0.0).sum(dim=0) / known_SJA.sum(dim=0).clamp(min=1)
        rows_RA = (value_SJA - mean_JA).transpose(0, 1).flatten(0, 1)
        parts.append(principal_targets(rows_RA, wanted).unflatten(0, (shape[0] * shape[1], len(rows))))
    return torch.cat(parts, dim=-1).unflatten(0, shape)


def _token_moments(tables: ReplayTables) -> tuple[Tensor, Tensor]:
    """Returns each place's mean token [T, P, D] and the spread around it by position [P, D], on `train`."""
    assert tables.token_STPMD is not None
    assert tables.token_present_STPM is not None
    train_S = tables.indices("train")
    train_S = train_S[np.linspace(0, len(train_S) - 1, min(len(train_S), MOMENT_SAMPLES)).astype(np.int64)]
    tiers, positions = len(tables.space.tiers), len(tables.space.insertion_positions)
    mean_TPD = torch.zeros(tiers, positions, tables.d_model)
    square_PD = torch.zeros(positions, tables.d_model)
    for tier in range(tiers):
        for position in range(positions):
            token_RD = torch.from_numpy(tables.token_STPMD[train_S, tier, position].astype(np.float32)).flatten(0, 1)
            present_R = torch.from_numpy(tables.token_present_STPM[train_S, tier, position]).flatten()
            token_RD = token_RD[present_R]
            if len(token_RD):
                mean_TPD[tier, position] = token_RD.mean(dim=0)
                square_PD[position] += (token_RD - mean_TPD[tier, position]).square().mean(dim=0) / tiers
    return mean_TPD, square_PD.sqrt().clamp(min=1e-6)


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


def _gains(fit: RidgeFit, sums: FoldSums, first: int) -> Tensor:
    """Returns what each feature is multiplied by, [Q].

    A feature comes to have the standard deviation sqrt(explained / best explained): what predicts nothing on held-out
    folds fades, instead of being blown up to the size of what does. The best is that of the group, the `first` targets
    or the rest, for a budget can always be read off a token, and an answer never.
    """
    variance_Q = (fit.weight_DQ * (sums.xx_KDD.sum(dim=0) @ fit.weight_DQ)).sum(dim=0) / max(1, sums.rows)
    groups = (fit.explained_Q[:first], fit.explained_Q[first:])
    share_Q = torch.cat([group / group.max().clamp(min=1e-12) for group in groups if len(group)])
    return share_Q.sqrt() / variance_Q.sqrt().clamp(min=1e-12)
