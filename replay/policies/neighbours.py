"""Nearest neighbours on the language feature: a strong baseline that controllers are compared with.

A setting's score is its mean reward, under the request's budget, over the k training samples with the nearest language
features. Distance and k are chosen on `val`. The candidates for k include the whole training split, which gives the
budget-only table: an uninformative feature therefore does no harm.

Implemented with matrix products, because scikit-learn is an optional extra and this baseline is always available.

Shapes: N training samples, Q queries, B requests, K neighbours, X settings, M budgets, D = d_model.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...data.protocols import Requests
from ..tables import FilledRewards, ReplayTables
from .scored import ScoredPolicy

METRICS = ("cosine", "standardised")
CANDIDATE_K = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
TUNING_SAMPLES, TUNING_BUDGETS = 1000, 4
_MISSING = -1e6  # reward of a setting that no sample has, so that it is never the best
_DISTANCES_AT_ONCE = 16_000_000  # distances held at a time: 64 MB


class NeighbourIndex:
    """Finds the nearest rows by one of two metrics.

    "cosine" compares features from which the mean is subtracted; "standardised" is the Euclidean distance with columns
    scaled to unit variance.
    """

    def __init__(self, feature_ND: NDArray[np.floating], metric: str) -> None:
        assert metric in METRICS, metric
        self.metric = metric
        feature_ND = np.asarray(feature_ND, dtype=np.float32)
        self.mean_D = feature_ND.mean(axis=0)
        # A column that is constant in training carries no information, whatever its value in a query. (Its computed
        # standard deviation may differ from 0: the float32 mean of a thousand values of 60.3 is not 60.3.)
        varies_D = feature_ND.min(axis=0, initial=np.inf) < feature_ND.max(axis=0, initial=-np.inf)
        std_D = np.where(varies_D, feature_ND.std(axis=0), np.inf)
        self.scale_D = (1.0 / np.maximum(std_D, 1e-12)).astype(np.float32)
        self.row_ND = self._transform(feature_ND)
        self.norm_N = torch.from_numpy(np.square(self.row_ND).sum(axis=1))

    def _transform(self, feature_QD: NDArray[np.floating]) -> NDArray[np.float32]:
        centred_QD = np.asarray(feature_QD, dtype=np.float32) - self.mean_D
        if self.metric == "standardised":
            return centred_QD * self.scale_D
        norm_Q = np.linalg.norm(centred_QD, axis=1, keepdims=True)
        return centred_QD / np.maximum(norm_Q, 1e-12)

    def nearest(self, feature_QD: NDArray[np.floating], k: int) -> NDArray[np.int64]:
        """Returns the k nearest rows of each query, nearest first, [Q, k]."""
        query = torch.from_numpy(self._transform(feature_QD))
        rows = torch.from_numpy(self.row_ND)
        at_once = max(1, _DISTANCES_AT_ONCE // max(1, len(rows)))
        # |q - r|^2 - |q|^2: the last term is the same for all rows. For unit vectors the order is that of the cosine.
        found = [
            (self.norm_N - 2.0 * part @ rows.T).topk(min(k, len(rows)), dim=1, largest=False, sorted=True).indices
            for part in query.split(at_once)
        ]
        return torch.cat(found).numpy() if found else np.zeros((0, min(k, len(rows))), dtype=np.int64)


class FittedRewards:
    """Rewards of the samples fitted on, with missing ones filled, to be averaged over neighbours."""

    def __init__(self, tables: ReplayTables, sample_N: NDArray[np.int64]) -> None:
        self.filled = FilledRewards(tables, sample_N)
        self.sample_N = sample_N
        self.mean_reward_MX = self.filled.mean_MX
        self.at_budget = lru_cache(maxsize=2)(self._at_budget)

    def _at_budget(self, budget: int) -> Tensor:
        reward_NX = self.filled.at_NX(float(self.filled.tables.budgets_ms_M[budget]))
        return torch.from_numpy(np.nan_to_num(reward_NX, nan=_MISSING))

    def _mean_X(self, budget: int) -> NDArray[np.float32]:
        return np.nan_to_num(self.mean_reward_MX[budget], nan=_MISSING).astype(np.float32)

    def mean_over(self, neighbour_QK: NDArray[np.int64], budget: int) -> NDArray[np.float32]:
        """Returns the mean reward of every setting over each query's neighbours, [Q, X]."""
        bags = torch.from_numpy(np.ascontiguousarray(neighbour_QK))
        return torch.nn.functional.embedding_bag(bags, self.at_budget(budget), mode="mean").numpy()

    def mean_over_nearest(self, nearest_QK: NDArray[np.int64], k: int, budget: int) -> NDArray[np.float32]:
        """The same over the first k neighbours; over all samples it returns the means that the look-up table uses."""
        if k < len(self.sample_N):
            return self.mean_over(nearest_QK[:, :k], budget)
        mean_X = self._mean_X(budget)
        return np.broadcast_to(mean_X, (len(nearest_QK), len(mean_X)))


def candidate_k(count: int) -> tuple[int, ...]:
    """Returns the values of k to try when there are `count` rows."""
    return (*(k for k in CANDIDATE_K if k < count), count)


def tuning_budgets(count: int) -> list[int]:
    """Returns the indices of the budgets on which hyperparameters are chosen: a few, spread over a grid of `count`."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(TUNING_BUDGETS, count))})


def reward_of_best(
    tables: ReplayTables, sample_Q: NDArray[np.int64], score_QX: NDArray[np.floating], budget: int
) -> float:
    """Returns the mean reward on these samples, under one budget, of the available settings with the highest scores."""
    reward_QX = tables.reward_BX(sample_Q, np.full(len(sample_Q), tables.budgets_ms_M[budget]))
    choice_Q = np.where(np.isfinite(reward_QX), score_QX, -np.inf).argmax(axis=1)
    return float(reward_QX[np.arange(len(sample_Q)), choice_Q].mean(dtype=np.float64))


class LanguageNeighbours(ScoredPolicy):
    """The neighbours policy. `metric` and `k` were chosen by `tuning`, the mean val reward of each candidate."""

    def __init__(self, tables: ReplayTables, *, seed: int = 0, metrics: Sequence[str] = METRICS) -> None:
        super().__init__("neighbours", tables.space)
        self.tables = tables
        fit_N, tune_Q = tables.fit_and_tune_samples
        self.tuning = self._tune(fit_N, tune_Q, seed, metrics)
        self.metric, self.k = max(self.tuning, key=lambda choice: self.tuning[choice])
        train_N = tables.train_samples()
        # If all samples fitted on were the best choice, use all training samples, of which those may be a part.
        self.k = len(train_N) if self.k == len(fit_N) else self.k
        self.index = NeighbourIndex(tables.language_feature_SD[train_N], self.metric)
        self.rewards = FittedRewards(tables, train_N)
        self._found: tuple[tuple[str, ...], NDArray[np.int64]] | None = None

    def _tune(
        self, fit_N: NDArray[np.int64], tune_Q: NDArray[np.int64], seed: int, metrics: Sequence[str]
    ) -> dict[tuple[str, int], float]:
        """Returns the mean reward of each (metric, k); without samples to tune on, NaN for a single k, sqrt(N)."""
        if not len(tune_Q):
            return {(metrics[0], max(1, round(len(fit_N) ** 0.5))): float("nan")}
        if len(tune_Q) > TUNING_SAMPLES:
            tune_Q = np.sort(np.random.default_rng(seed).choice(tune_Q, TUNING_SAMPLES, replace=False))
        rewards = FittedRewards(self.tables, fit_N)
        budgets = tuning_budgets(len(self.tables.budgets_ms_M))
        every_k = candidate_k(len(fit_N))
        feature_SD = self.tables.language_feature_SD
        gained: dict[tuple[str, int], float] = {}
        for metric in metrics:
            nearest_QK = NeighbourIndex(feature_SD[fit_N], metric).nearest(feature_SD[tune_Q], every_k[-2:][0])
            for budget in budgets:
                for k in every_k:
                    score_QX = rewards.mean_over_nearest(nearest_QK, k, budget)
                    mean = reward_of_best(self.tables, tune_Q, score_QX, budget) / len(budgets)
                    gained[metric, k] = gained.get((metric, k), 0.0) + mean
        return gained

    def scores_BX(self, requests: Requests) -> NDArray[np.floating]:
        if self._found is None or self._found[0] != requests.sample_ids:
            few = self.k if self.k < len(self.rewards.sample_N) else 0  # no search is needed for all samples
            self._found = (requests.sample_ids, self.index.nearest(requests.language_feature_BD, few))
        nearest_BK = self._found[1]
        budget_B = self.tables.budget_rows(requests.budget_ms_B)
        score_BX = np.empty((len(requests), len(self.space.settings)), dtype=np.float32)
        for budget in np.unique(budget_B):
            rows = budget_B == budget
            score_BX[rows] = self.rewards.mean_over_nearest(nearest_BK[rows], self.k, int(budget))
        return score_BX
