"""The training split's latency tokens, read in slices, and their moments.

Tokens may take many GB on disk, so each sample is read as a whole and once per pass.
Shapes: T tiers, P insertion positions, M budgets, D = d_model; N tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..tables import ReplayTables

SAMPLES_PER_READ = 64
MOMENT_SAMPLES = 1024


@dataclass(frozen=True)
class TokenMoments:
    """Each place's mean token [T, P, D], the spread around it by position [P, D], and each budget's shift [P, M, D]."""

    mean_TPD: Tensor
    spread_PD: Tensor
    budget_PMD: Tensor


def token_moments(tables: ReplayTables, samples: int) -> TokenMoments:
    """Returns the moments over at most this many samples of `train`."""
    assert tables.token_STPMD is not None
    assert tables.token_present_STPM is not None
    train_S = tables.indices("train")
    train_S = train_S[np.linspace(0, len(train_S) - 1, min(len(train_S), samples)).astype(np.int64)]
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
    # A dimension that is constant in these samples is not rescaled: divided by almost nothing, a single other sample
    # in which it varies would dominate all other columns, and the penalties with them.
    return TokenMoments(mean_TPD, torch.where(spread_PD > 1e-6, spread_PD, torch.ones(())), budget_PMD)


@dataclass(frozen=True)
class TokenRows:
    """Tokens of one fold, tier and position: rows of the training split [N], budget indices [N], tokens [N, D]."""

    fold: int
    tier: int
    position: int
    sample_N: Tensor
    budget_N: Tensor
    token_ND: Tensor


def token_rows(
    tables: ReplayTables, fold_S: NDArray[np.int64], rows_per_place: int, generator: np.random.Generator
) -> Iterator[TokenRows]:
    """Yields the tokens of `rows_per_place` random budgets for every training sample, tier and position."""
    train_S = tables.indices("train")
    assert tables.token_STPMD is not None
    assert tables.token_present_STPM is not None
    tiers, positions, budgets = tables.token_STPMD.shape[1:4]
    for fold in range(int(fold_S.max()) + 1):
        in_fold = np.flatnonzero(fold_S == fold)
        for start in range(0, len(in_fold), SAMPLES_PER_READ):
            part = in_fold[start : start + SAMPLES_PER_READ]
            token_STPMD = np.asarray(tables.token_STPMD[train_S[part]])
            present_STPM = tables.token_present_STPM[train_S[part]]
            row_N = np.repeat(np.arange(len(part)), min(rows_per_place, budgets))
            for tier, position in np.ndindex(tiers, positions):
                budget_N = generator.integers(0, budgets, len(row_N))
                keep_N = present_STPM[row_N, tier, position, budget_N]
                row, budget = row_N[keep_N], budget_N[keep_N]
                token_ND = token_STPMD[row, tier, position, budget].astype(np.float32)
                yield TokenRows(
                    fold, tier, position, *(torch.from_numpy(array) for array in (part[row], budget, token_ND))
                )
