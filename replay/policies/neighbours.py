"""Nearest neighbours on the language feature: the bar that controllers have to clear.

A setting's score is its mean reward, under the request's budget, over the k training samples whose language features
lie nearest. Measure of nearness and k are chosen on `val`, among k up to the whole training split, where neighbours
become the budget-only table: so a feature that reveals nothing costs nothing.

Written on matrix products because it must always be there: scikit-learn is an optional extra.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...data.protocols import Requests
from .reward_table import FilledRewards, RewardTable
from .scored import ScoredPolicy

METRICS = ("cosine", "standardised")
CANDIDATE_K = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
TUNING_SAMPLES, TUNING_BUDGETS = 1000, 4
_NOBODY_HAS_IT = -1e6  # a setting that no sample has is never the best
_SCORES_AT_ONCE = 16_000_000  # similarities held at a time: 64 MB


class NeighbourIndex:
    """Finds nearest rows.

    "cosine" is that of features less their mean, "standardised" the Euclidean distance with columns at unit variance.
    """

    def __init__(self, feature_ND: NDArray[np.floating], metric: str) -> None:
        assert metric in METRICS, metric
        self.metric = metric
        feature_ND = np.asarray(feature_ND, dtype=np.float32)
        self.mean_D = feature_ND.mean(axis=0)
        # A column that never varies in training says nothing, whatever it holds later. (Its standard deviation need
        # not come out as 0: the mean of a thousand float32 60.3 is not 60.3.)
        varies_D = feature_ND.min(axis=0, initial=np.inf) < feature_ND.max(axis=0, initial=-np.inf)
        std_D = np.where(varies_D, feature_ND.std(axis=0), np.inf)
        self.scale_D = (1.0 / np.maximum(std_D, 1e-12)).astype(np.float32)
        self.row_ND = self._place(feature_ND)
        self.norm_N = torch.from_numpy(np.square(self.row_ND).sum(axis=1))

    def _place(self, feature_QD: NDArray[np.floating]) -> NDArray[np.float32]:
        centred_QD = np.asarray(feature_QD, dtype=np.float32) - self.mean_D
        if self.metric == "standardised":
            return centred_QD * self.scale_D
        norm_Q = np.linalg.norm(centred_QD, axis=1, keepdims=True)
        return centred_QD / np.maximum(norm_Q, 1e-12)

    def nearest(self, feature_QD: NDArray[np.floating], k: int) -> NDArray[np.int64]:
        """Returns the k nearest rows of each query, nearest first, [Q, k]."""
        query = torch.from_numpy(self._place(feature_QD))
        rows = torch.from_numpy(self.row_ND)
        at_once = max(1, _SCORES_AT_ONCE // max(1, len(rows)))
        # |q - r|^2 less |q|^2, which is the same for all rows; for unit vectors this is the cosine's order.
        found = [
            (self.norm_N - 2.0 * part @ rows.T).topk(min(k, len(rows)), dim=1, largest=False, sorted=True).indices
            for part in query.split(at_once)
        ]
        return torch.cat(found).numpy() if found else np.zeros((0, min(k, len(rows))), dtype=np.int64)


class FittedRewards:
    """Rewards of the samples fitted on, holes filled: what neighbours are averaged over."""

    def __init__(self, table: RewardTable, sample_N: NDArray[np.int64]) -> None:
        self.filled = FilledRewards(table, sample_N)
        self.sample_N = sample_N
        self.mean_reward_MX = self.filled.mean_MX
        self.at_budget = lru_cache(maxsize=2)(self._at_budget)

    def _at_budget(self, budget: int) -> Tensor:
        reward_NX = self.filled.at_NX(float(self.filled.table.budgets_ms_M[budget]))
        return torch.from_numpy(np.nan_to_num(reward_NX, nan=_NOBODY_HAS_IT))

    def _mean_X(self, budget: int) -> NDArray[np.float32]:
        return np.nan_to_num(self.mean_reward_MX[budget], nan=_NOBODY_HAS_IT).astype(np.float32)

    def mean_over(self, neighbour_QK: NDArray[np.int64], budget: int) -> NDArray[np.float32]:
        """Returns the mean reward of every setting over each query's neighbours, [Q, X]."""
        bags = torch.from_numpy(np.ascontiguousarray(neighbour_QK))
        return torch.nn.functional.embedding_bag(bags, self.at_budget(budget), mode="mean").numpy()

    def mean_over_nearest(self, nearest_QK: NDArray[np.int64], k: int, budget: int) -> NDArray[np.float32]:
        """The same over the first k neighbours; with k the number of all samples, what the look-up table goes by."""
        if k < len(self.sample_N):
            return self.mean_over(nearest_QK[:, :k], budget)
        mean_X = self._mean_X(budget)
        return np.broadcast_to(mean_X, (len(nearest_QK), len(mean_X)))


def candidate_k(count: int) -> tuple[int, ...]:
    """Returns the values of k to try with `count` rows to find neighbours among."""
    return (*(k for k in CANDIDATE_K if k < count), count)


def tuning_budgets(count: int) -> list[int]:
    """Returns which budgets of a grid of `count` hyperparameters are chosen on: a few, spread over the grid."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(TUNING_BUDGETS, count))})


def reward_of_best(
    table: RewardTable, sample_Q: NDArray[np.int64], score_QX: NDArray[np.floating], budget: int
) -> float:
    """Returns the mean reward that choosing by these scores has on these samples under one budget."""
    reward_QX = table.reward_BX(sample_Q, np.full(len(sample_Q), table.budgets_ms_M[budget]))
    choice_Q = np.where(np.isfinite(reward_QX), score_QX, -np.inf).argmax(axis=1)
    return float(reward_QX[np.arange(len(sample_Q)), choice_Q].mean(dtype=np.float64))


class LanguageNeighbours(ScoredPolicy):
    """The neighbours policy; `metric`, `k` and `tuning` (mean val reward of each candidate) say what was chosen."""

    def __init__(self, table: RewardTable, *, seed: int = 0, metrics: Sequence[str] = METRICS) -> None:
        super().__init__("neighbours", table.axes)
        self.table = table
        fit_N, tune_Q = table.fit_and_tune_rows
        self.tuning = self._tune(fit_N, tune_Q, seed, metrics)
        self.metric, self.k = max(self.tuning, key=lambda choice: self.tuning[choice])
        train_N = table.train_rows()
        # The share of the training split is kept where the choice was made on less than all of it.
        self.k = len(train_N) if self.k == len(fit_N) else self.k
        self.index = NeighbourIndex(table.language_feature_SD[train_N], self.metric)
        self.rewards = FittedRewards(table, train_N)
        self._found: tuple[tuple[str, ...], NDArray[np.int64]] | None = None

    def _tune(
        self, fit_N: NDArray[np.int64], tune_Q: NDArray[np.int64], seed: int, metrics: Sequence[str]
    ) -> dict[tuple[str, int], float]:
        """Returns the mean reward of each (metric, k); without samples to tune on, of the middle k alone."""
        if not len(tune_Q):
            return {(metrics[0], max(1, round(len(fit_N) ** 0.5))): float("nan")}
        if len(tune_Q) > TUNING_SAMPLES:
            tune_Q = np.sort(np.random.default_rng(seed).choice(tune_Q, TUNING_SAMPLES, replace=False))
        rewards = FittedRewards(self.table, fit_N)
        budgets = tuning_budgets(len(self.table.budgets_ms_M))
        every_k = candidate_k(len(fit_N))
        feature_SD = self.table.language_feature_SD
        gained: dict[tuple[str, int], float] = {}
        for metric in metrics:
            nearest_QK = NeighbourIndex(feature_SD[fit_N], metric).nearest(feature_SD[tune_Q], every_k[-2:][0])
            for budget in budgets:
                for k in every_k:
                    score_QX = rewards.mean_over_nearest(nearest_QK, k, budget)
                    mean = reward_of_best(self.table, tune_Q, score_QX, budget) / len(budgets)
                    gained[metric, k] = gained.get((metric, k), 0.0) + mean
        return gained

    def scores_BX(self, requests: Requests) -> NDArray[np.floating]:
        if self._found is None or self._found[0] != requests.sample_ids:
            few = self.k if self.k < len(self.rewards.sample_N) else 0  # all of them need no search
            self._found = (requests.sample_ids, self.index.nearest(requests.language_feature_BD, few))
        nearest_BK = self._found[1]
        budget_B = self.table.budget_rows(requests.budget_ms_B)
        score_BX = np.empty((len(requests), len(self.axes)), dtype=np.float32)
        for budget in np.unique(budget_B):
            rows = budget_B == budget
            score_BX[rows] = self.rewards.mean_over_nearest(nearest_BK[rows], self.k, int(budget))
        return score_BX
