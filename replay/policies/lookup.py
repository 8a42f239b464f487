"""Look-up tables and the oracle: the best setting per budget, per dataset and budget, and per sample and budget."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...data.protocols import Requests
from ..tables import FilledRewards, ReplayTables
from .scored import ScoredPolicy


class BudgetTable(ScoredPolicy):
    """The setting with the highest mean reward over the training split under the request's budget."""

    def __init__(self, tables: ReplayTables) -> None:
        super().__init__("table", tables.space)
        self.tables = tables
        self.reward_MX = tables.train_rewards.mean_MX

    def scores_BX(self, requests: Requests) -> NDArray[np.floating]:
        return self.reward_MX[self.tables.budget_rows(requests.budget_ms_B)]


class AnyBudgetTable(ScoredPolicy):
    """`BudgetTable` for any budget: a live request may have one outside the grid."""

    def __init__(self, tables: ReplayTables) -> None:
        super().__init__("table", tables.space)
        self.tables = tables
        self._reward_X: dict[float, NDArray[np.float64]] = {}

    def scores_BX(self, requests: Requests) -> NDArray[np.floating]:
        return np.stack([self._mean_reward_X(float(budget_ms)) for budget_ms in requests.budget_ms_B])

    def _mean_reward_X(self, budget_ms: float) -> NDArray[np.float64]:
        if budget_ms not in self._reward_X:
            self._reward_X[budget_ms] = self.tables.train_rewards.mean_X(budget_ms)
        return self._reward_X[budget_ms]


class DatasetTable(ScoredPolicy):
    """`BudgetTable` over the training samples of the request's dataset; over all of them for an unknown dataset."""

    def __init__(self, tables: ReplayTables) -> None:
        super().__init__("dataset_table", tables.space)
        self.tables = tables
        dataset_S = np.array(tables.datasets, dtype=object)
        train_N = tables.train_samples()
        self.reward_by_dataset = {
            name: FilledRewards(tables, train_N[dataset_S[train_N] == name]).mean_MX
            for name in sorted(set(dataset_S[train_N].tolist()))
        }

    def scores_BX(self, requests: Requests) -> NDArray[np.floating]:
        budget_B = self.tables.budget_rows(requests.budget_ms_B)
        overall_MX = self.tables.train_rewards.mean_MX
        reward_MX_by_request = [self.reward_by_dataset.get(name, overall_MX) for name in requests.datasets]
        return np.stack([reward_MX[m] for reward_MX, m in zip(reward_MX_by_request, budget_B, strict=True)])


class Oracle(ScoredPolicy):
    """Each sample's best setting under each budget, from its own outcomes: an upper bound for any policy."""

    def __init__(self, tables: ReplayTables) -> None:
        super().__init__("oracle", tables.space)
        self.tables = tables

    def scores_BX(self, requests: Requests) -> NDArray[np.floating]:
        return self.tables.reward_BX(self.tables.sample_rows(requests), requests.budget_ms_B)
