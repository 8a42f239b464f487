"""What baselines are fitted on and the oracle reads: rewards of every setting, sample by sample, on numpy arrays.

Shapes: S samples, X settings, M budgets, B requests, D = d_model. Knows nothing of policies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...data.errors import KnobctlError
from ...data.protocols import Requests
from ..reward import RewardWeights, reward
from ..tables import ReplayTables
from .axes import SettingAxes
from .expected import completed, expected_accuracy, expected_latency_ms, mean_over_samples

if TYPE_CHECKING:
    from ...data.cache.reader import Cache

_ROWS_AT_ONCE = 2048  # bounds what the reward's temporaries take: 2,048 rows of 375 settings are 3 MB each


UNTIMED = (
    "the cache has no latencies (its results recorded none), and without them no choice can be rewarded: import "
    "results that hold T_total, or let the model measure with "
    "`knobctl precompute --model MODEL --dataset NAME --from-results DIR --out CACHE`"
)


@dataclass(frozen=True)
class RewardTable:
    """Outcomes of a cache with the reward's weights, looked up by sample and budget."""

    tables: ReplayTables
    datasets: tuple[str, ...]  # of each sample, in the order of `tables.sample_ids`
    weights: RewardWeights

    @classmethod
    def from_cache(cls, cache: Cache, weights: RewardWeights | None = None) -> RewardTable:
        return cls(
            ReplayTables.from_cache(cache), tuple(cache.samples["dataset"].to_list()), weights or RewardWeights()
        )

    @classmethod
    def from_tables(cls, tables: ReplayTables, weights: RewardWeights) -> RewardTable:
        """The same from tables in memory, which number datasets instead of naming them."""
        return cls(tables, tuple(str(number) for number in tables.dataset_S.tolist()), weights)

    @cached_property
    def axes(self) -> SettingAxes:
        return SettingAxes.of(self.tables.space)

    @cached_property
    def budgets_ms_M(self) -> NDArray[np.float32]:
        return self.tables.budgets_ms_M.numpy().astype(np.float32)

    @cached_property
    def complexity_X(self) -> NDArray[np.float32]:
        return self.tables.complexity_X.numpy()

    @cached_property
    def available_SX(self) -> NDArray[np.bool_]:
        """Where accuracy and latency are both known: the choices that replay can answer."""
        return self.tables.available_SX.numpy()

    @cached_property
    def accuracy_SX(self) -> NDArray[np.float32]:
        return self.tables.accuracy_SX.numpy()

    @cached_property
    def latency_ms_SX(self) -> NDArray[np.float32]:
        return self.tables.latency_ms_SX.numpy()

    @cached_property
    def language_feature_SD(self) -> NDArray[np.float32]:
        return self.tables.language_feature_SD.numpy()

    @cached_property
    def sample_index(self) -> dict[str, int]:
        return {sample_id: index for index, sample_id in enumerate(self.tables.sample_ids)}

    def indices(self, split: str) -> NDArray[np.int64]:
        """Samples of a split that have at least one outcome, as indices; may be empty."""
        rows = np.asarray(self.tables.indices(split), dtype=np.int64)
        return rows[self.available_SX[rows].any(axis=1)]

    def requests(self, sample_N: NDArray[np.int64], budget: int, *, with_tokens: bool = False) -> Requests:
        """Returns requests of cached samples under one budget of the grid, with the settings each has on record.

        `with_tokens` also asks for the latency token that leads to a setting: for policies that read it.
        """
        available_NX = self.available_SX[sample_N]
        present_STPM = self.tables.token_present_STPM
        if with_tokens and present_STPM is not None:
            tier_X, position_X = self.axes.axis_KX[:2]
            available_NX = available_NX & present_STPM[sample_N, :, :, budget][:, tier_X, position_X]
        return Requests(
            sample_ids=tuple(self.tables.sample_ids[index] for index in sample_N),
            datasets=tuple(self.datasets[index] for index in sample_N),
            language_feature_BD=self.language_feature_SD[sample_N],
            budget_ms_B=np.full(len(sample_N), self.budgets_ms_M[budget], dtype=np.float32),
            available_BX=available_NX,
        )

    def sample_rows(self, requests: Requests) -> NDArray[np.int64]:
        return np.array([self.sample_index[sample_id] for sample_id in requests.sample_ids], dtype=np.int64)

    def budget_rows(self, budget_ms_B: Sequence[float] | NDArray[np.float32]) -> NDArray[np.int64]:
        """Returns each budget's place in the cache's grid, compared as float32. Another budget is an error."""
        budget_ms_B = np.asarray(budget_ms_B, dtype=np.float32)
        if not len(self.budgets_ms_M):
            raise KnobctlError(
                "the cache has no budget grid (`budgets_ms` in cache.json is empty): import the results again, which "
                "makes a grid of their recorded latencies"
            )
        match_BM = budget_ms_B[:, None] == self.budgets_ms_M[None, :]
        if not match_BM.any(axis=1).all():
            strangers = sorted({float(budget) for budget in budget_ms_B[~match_BM.any(axis=1)]})
            raise KnobctlError(
                f"budgets {strangers} ms are not in the cache's grid, and replay knows no other: choose from "
                f"[{', '.join(str(budget) for budget in self.budgets_ms_M)}] ms"
            )
        return match_BM.argmax(axis=1)

    def reward_BX(self, sample_B: NDArray[np.int64], budget_ms_B: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns the reward of every setting, NaN where the cache has a hole. Any budget will do."""
        return self.rewards_of(self.tables.accuracy_SX, self.tables.latency_ms_SX, sample_B, budget_ms_B)

    def rewards_of(
        self, accuracy_SX: Tensor, latency_ms_SX: Tensor, sample_B: NDArray[np.int64], budget_ms_B: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """The same from other outcomes than the cache's: `sample_B` are rows of these."""
        complexity_X = self.tables.complexity_X
        reward_BX = np.empty((len(sample_B), len(self.axes)), dtype=np.float32)
        for start in range(0, len(sample_B), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            rows = torch.from_numpy(sample_B[part])
            budget_ms = torch.from_numpy(np.ascontiguousarray(budget_ms_B[part], dtype=np.float32))[:, None]
            accuracy, latency_ms = accuracy_SX[rows], latency_ms_SX[rows]
            reward_BX[part] = reward(accuracy, latency_ms, budget_ms, complexity_X, self.weights).numpy()
        return reward_BX

    @cached_property
    def train_rewards(self) -> FilledRewards:
        return FilledRewards(self, self.train_rows())

    @property
    def train_reward_MX(self) -> NDArray[np.float64]:
        return self.train_rewards.mean_MX

    def mean_reward_MX(self, sample_N: NDArray[np.int64]) -> NDArray[np.float64]:
        """Returns the mean reward of every setting under every budget over these samples; NaN where none has it."""
        return FilledRewards(self, sample_N).mean_MX

    def train_rows(self) -> NDArray[np.int64]:
        """The training split, without which nothing can be fitted."""
        rows = self.indices("train")
        if not len(rows):
            raise KnobctlError(
                "the cache has no sample with outcomes in split `train`, so tables, neighbours and the guard cannot be "
                "fitted: add a training split, or leave out what is fitted"
            )
        return rows

    @cached_property
    def fit_and_tune_rows(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Training samples to fit on, and samples to choose hyperparameters on.

        The latter are `val`; without it every fifth image of the training split is held out for the choice.
        """
        train, val = self.train_rows(), self.indices("val")
        if len(val):
            return train, val
        held_out = self.tables.cluster_S[train] % 5 == 4
        return (train[~held_out], train[held_out]) if held_out.any() and not held_out.all() else (train, train[:0])


class FilledRewards:
    """Rewards of some samples under every setting: measured where on record, expected in holes (see `expected`)."""

    def __init__(self, table: RewardTable, sample_N: NDArray[np.int64]) -> None:
        self.table = table
        self.sample_N = sample_N
        self._expected: tuple[Tensor, Tensor] | None = None
        if not table.available_SX[sample_N].all():
            accuracy_NX = expected_accuracy(table.accuracy_SX[sample_N])
            latency_ms_NX = expected_latency_ms(table.latency_ms_SX[sample_N], table.axes.axis_KX[0])
            self._expected = torch.from_numpy(accuracy_NX), torch.from_numpy(latency_ms_NX)

    def at_NX(self, budget_ms: float) -> NDArray[np.float32]:
        """Returns the rewards under one budget, of the grid or not; NaN for a setting that none of the samples has."""
        return completed(*self._measured_and_expected(budget_ms)).astype(np.float32, copy=False)

    def mean_X(self, budget_ms: float) -> NDArray[np.float64]:
        """Returns every setting's mean reward under one budget."""
        return mean_over_samples(*self._measured_and_expected(budget_ms))

    @cached_property
    def mean_MX(self) -> NDArray[np.float64]:
        """Every setting's mean reward under every budget of the grid."""
        return np.stack([self.mean_X(float(budget_ms)) for budget_ms in self.table.budgets_ms_M])

    def _measured_and_expected(self, budget_ms: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        budget_ms_N = np.full(len(self.sample_N), budget_ms, dtype=np.float32)
        reward_NX = self.table.reward_BX(self.sample_N, budget_ms_N)
        if self._expected is None:
            return reward_NX, reward_NX
        return reward_NX, self.table.rewards_of(*self._expected, np.arange(len(self.sample_N)), budget_ms_N)
