"""Look-up tables and the oracle: the best setting per budget, per dataset and budget, and per sample and budget."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...data.protocols import Requests
from .reward_table import RewardTable
from .scored import ScoredPolicy


class BudgetTable(ScoredPolicy):
    """The setting with the highest mean reward over the training split under the request's budget."""

    def __init__(self, table: RewardTable) -> None:
        super().__init__("table", table.axes)
        self.table = table
        self.reward_MX = table.train_reward_MX

    def scores_BX(self, requests: Requests) -> NDArray[np.floating]:
        return self.reward_MX[self.table.budget_rows(requests.budget_ms_B)]


class AnyBudgetTable(ScoredPolicy):
    """The same under any budget, of the grid or not: a live caller may name another one."""

    def __init__(self, table: RewardTable) -> None:
        super().__init__("table", table.axes)
        self.table = table
        self._reward_X: dict[float, NDArray[np.float64]] = {}

    def scores_BX(self, requests: Requests) -> NDArray[np.floating]:
        return np.stack([self._mean_reward_X(float(budget_ms)) for budget_ms in requests.budget_ms_B])

    def _mean_reward_X(self, budget_ms: float) -> NDArray[np.float64]:
        if budget_ms not in self._reward_X:
            self._reward_X[budget_ms] = self.table.train_rewards.mean_X(budget_ms)
        return self._reward_X[budget_ms]


class DatasetTable(ScoredPolicy):
    """The same, over the training samples of the request's dataset; one unknown in training uses the budget's table."""

    def __init__(self, table: RewardTable) -> None:
        super().__init__("dataset_table", table.axes)
        self.table = table
        dataset_S = np.array(table.datasets, dtype=object)
        rows = table.train_rows()
        names = sorted(set(dataset_S[rows].tolist()))
        self.reward_by_dataset = {name: table.mean_reward_MX(rows[dataset_S[rows] == name]) for name in names}

    def scores_BX(self, requests: Requests) -> NDArray[np.floating]:
        budget_B = self.table.budget_rows(requests.budget_ms_B)
        tables = [self.reward_by_dataset.get(name, self.table.train_reward_MX) for name in requests.datasets]
        return np.stack([reward_MX[m] for reward_MX, m in zip(tables, budget_B, strict=True)])


class Oracle(ScoredPolicy):
    """Each sample's best setting under each budget, from its own outcomes: the most that any policy can have."""

    def __init__(self, table: RewardTable) -> None:
        super().__init__("oracle", table.axes)
        self.table = table

    def scores_BX(self, requests: Requests) -> NDArray[np.floating]:
        return self.table.reward_BX(self.table.sample_rows(requests), requests.budget_ms_B)
