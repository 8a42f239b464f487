"""Nearest neighbours on the latency token: Stage1 chooses by the language feature, Stage2 by the token read there.

Shapes: N training samples, Q queries, B requests, X settings, D = d_model.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ...data.errors import CacheError
from ...data.protocols import Requests
from ..tables import ReplayTables
from .neighbours import (
    METRICS,
    FittedRewards,
    LanguageNeighbours,
    NeighbourIndex,
    candidate_k,
    reward_of_best,
    tuning_budgets,
)
from .scored import ScoredPolicy

REFERENCE_SAMPLES = 8000  # bounds the tokens read from disk for every (tier, position, budget)
TUNING_SAMPLES = 500
LARGEST_K = 1000  # with more neighbours, the result approaches the budget-only table


def tokens_present(
    tables: ReplayTables, sample_N: NDArray[np.int64], tier: int, position: int, budget: int
) -> NDArray[np.int64]:
    """Returns the training samples that have a latency token there. Raises CacheError if none has."""
    kept_N = with_token(tables, sample_N, tier, position, budget)
    if not len(kept_N):
        raise CacheError(
            f"{no_token_at(tables, tier, position, budget)}: "
            "leave out the baselines on latency tokens, or complete the cache"
        )
    return kept_N


def with_token(
    tables: ReplayTables, sample_N: NDArray[np.int64], tier: int, position: int, budget: int
) -> NDArray[np.int64]:
    """Returns the samples that have a latency token there; may be empty."""
    present_STPM = tables.token_present_STPM
    if present_STPM is None:
        raise CacheError(
            "the cache has no latency tokens, so neighbours and regressions on them cannot be fitted: "
            "leave out the baselines on latency tokens"
        )
    return sample_N[present_STPM[sample_N, tier, position, budget]]


def no_token_at(tables: ReplayTables, tier: int, position: int, budget: int) -> str:
    """Returns the message that training has no token there."""
    space = tables.space
    return (
        f"no training sample has a latency token at tier {space.tiers[tier]}, insertion position "
        f"{space.insertion_positions[position]}, budget {tables.budgets_ms_M[budget]:g} ms"
    )


def read_tokens(
    tables: ReplayTables, sample_N: NDArray[np.int64], tier: int, position: int, budget: int
) -> NDArray[np.float32]:
    """Returns the latency tokens of samples that have one there, [N, D]."""
    store_STPMD = tables.token_STPMD
    assert store_STPMD is not None, "tokens_present has checked this"
    return np.asarray(store_STPMD[sample_N, tier, position, budget], dtype=np.float32)


class TokenPolicy(ScoredPolicy):
    """Stage1 chooses as another policy does; Stage2 scores (top-k, num_blocks) from the latency token."""

    uses_latency_token = True

    def __init__(self, name: str, tables: ReplayTables, stage1: ScoredPolicy) -> None:
        super().__init__(name, tables.space)
        self.tables = tables
        self.stage1 = stage1

    def scores_BX(self, requests: Requests) -> NDArray[np.floating]:
        return self.stage1.scores_BX(requests)

    def token_scores_BX(
        self, token_BD: NDArray[np.floating], tier: int, position: int, budget: int
    ) -> NDArray[np.floating]:
        """Returns scores of every setting from tokens of one (tier, position, budget).

        Scores of settings with another tier or position are ignored.
        """
        raise NotImplementedError

    def choose_compute(
        self,
        requests: Requests,
        tier_B: NDArray[np.int64],
        position_B: NDArray[np.int64],
        token_BD: NDArray[np.float16] | None,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        if token_BD is None:
            raise CacheError(f"policy `{self.name}` reads latency tokens, and the cache has none: leave it out")
        budget_B = self.tables.budget_rows(requests.budget_ms_B)
        pair_B = self.space.stage1_choice(tier_B, position_B)
        place_B = pair_B * len(self.tables.budgets_ms_M) + budget_B
        score_BX = np.empty((len(requests), len(self.space.settings)), dtype=np.float64)
        for place in np.unique(place_B):
            rows = np.flatnonzero(place_B == place)
            first = rows[0]
            score_BX[rows] = self.token_scores_BX(
                token_BD[rows], int(tier_B[first]), int(position_B[first]), int(budget_B[first])
            )
        allowed_BX = self.space.stage1_choice_X == pair_B[:, None]
        if requests.available_BX is not None:
            allowed_BX &= requests.available_BX
        setting_B = np.where(allowed_BX, score_BX, -np.inf).argmax(axis=1)
        assert allowed_BX[np.arange(len(setting_B)), setting_B].all(), "Stage1 chose a pair without a setting"
        return self.space.value_index_KX[2, setting_B], self.space.value_index_KX[3, setting_B]


class TokenNeighbours(TokenPolicy):
    """Stage2's score of a setting is its mean reward over the k training samples with the nearest tokens."""

    def __init__(self, tables: ReplayTables, stage1: LanguageNeighbours, *, seed: int = 0) -> None:
        super().__init__("neighbours_token", tables, stage1)
        fit_N, tune_Q = tables.fit_and_tune_samples
        self.rewards = FittedRewards(tables, some_of(fit_N, REFERENCE_SAMPLES, seed))
        self.index = lru_cache(maxsize=8)(self._index)  # at most 64 MB each; requests arrive budget by budget
        self.tuning: dict[tuple[str, int], float] = {}
        self.metric, self.k = stage1.metric, max(1, round(len(self.rewards.sample_N) ** 0.5))
        if len(tune_Q):
            self.tuning = self._tune(some_of(tune_Q, TUNING_SAMPLES, seed))
        if self.tuning:
            self.metric, self.k = max(self.tuning, key=lambda choice: self.tuning[choice])

    def _index(self, tier: int, position: int, budget: int, metric: str) -> tuple[NeighbourIndex, NDArray[np.int64]]:
        """Returns the index of the tokens there, and the row of `rewards` that each of its rows belongs to."""
        present_N = tokens_present(self.tables, self.rewards.sample_N, tier, position, budget)
        index = NeighbourIndex(read_tokens(self.tables, present_N, tier, position, budget), metric)
        return index, np.searchsorted(self.rewards.sample_N, present_N)

    def _tune(self, tune_Q: NDArray[np.int64]) -> dict[tuple[str, int], float]:
        """Returns the summed mean val rewards of each (metric, k), with the pair that the budget-only table chooses.

        Budgets for which no val sample has the token are skipped; the result is empty if all are.
        """
        gained: dict[tuple[str, int], float] = {}
        pair_X = self.space.stage1_choice_X
        for budget in tuning_budgets(len(self.tables.budgets_ms_M)):
            best = int(np.nanargmax(self.rewards.mean_reward_MX[budget]))
            tier, position = int(self.space.value_index_KX[0, best]), int(self.space.value_index_KX[1, best])
            with_pair_Q = self.tables.available_SX[tune_Q][:, pair_X == pair_X[best]].any(axis=1)
            query_Q = with_token(self.tables, tune_Q[with_pair_Q], tier, position, budget)
            if not len(query_Q):
                continue
            token_QD = read_tokens(self.tables, query_Q, tier, position, budget)
            every_k = [k for k in candidate_k(len(self.rewards.sample_N)) if k <= LARGEST_K]
            for metric in METRICS:
                index, row_N = self.index(tier, position, budget, metric)
                nearest_QK = row_N[index.nearest(token_QD, every_k[-1])]
                for k in every_k:
                    score_QX = self.rewards.mean_over(nearest_QK[:, :k], budget)
                    score_QX = np.where(pair_X == pair_X[best], score_QX, -1e9)
                    mean = reward_of_best(self.tables, query_Q, score_QX, budget)
                    gained[metric, k] = gained.get((metric, k), 0.0) + mean
        return gained

    def token_scores_BX(
        self, token_BD: NDArray[np.floating], tier: int, position: int, budget: int
    ) -> NDArray[np.floating]:
        index, row_N = self.index(tier, position, budget, self.metric)
        return self.rewards.mean_over(row_N[index.nearest(token_BD, self.k)], budget)


def some_of(rows: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """Returns at most `count` of the rows, drawn with the seed, in ascending order."""
    if len(rows) <= count:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, count, replace=False))
