"""What one policy's choices gave, request by request: accuracy, reward and its terms, latency, misses.

Shapes: N samples, M budgets, R timed runs. Knows nothing of means or intervals.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from ..policies.reward_table import RewardTable
from ..reward import reward, reward_terms

if TYPE_CHECKING:
    from ...data.cache.reader import Cache

TERMS = ("accuracy", "latency", "violation", "saving", "complexity")
STATS = (
    "accuracy",
    "accuracy_in_time",  # an answer over budget counts as wrong
    "reward",
    *(f"reward_{term}" for term in TERMS),
    "regret",  # the oracle's reward less the policy's
    "latency_ms",
    "violation_rate",  # share over budget
    "feasible",  # some setting of the sample meets the budget
    "violation_of_feasible",  # over budget although some setting meets it
)


@dataclass(frozen=True)
class Problem:
    """The requests that policies are measured on, and what is best for each."""

    table: RewardTable
    sample_N: NDArray[np.int64]
    budget_M: tuple[int, ...]  # places in the cache's grid
    oracle_reward_NM: NDArray[np.float64]
    feasible_NM: NDArray[np.bool_]
    latency_runs_ms_NXR: NDArray[np.float32] | None

    @property
    def budgets_ms(self) -> NDArray[np.float32]:
        return self.table.budgets_ms_M[list(self.budget_M)]

    @classmethod
    def of(
        cls,
        table: RewardTable,
        sample_N: NDArray[np.int64],
        budget_M: tuple[int, ...],
        latency_runs_ms_NXR: NDArray[np.float32] | None = None,
    ) -> Problem:
        best = [
            np.nanmax(table.reward_BX(sample_N, np.full(len(sample_N), table.budgets_ms_M[budget])), axis=1)
            for budget in budget_M
        ]
        latency_NX = np.where(table.available_SX[sample_N], table.latency_ms_SX[sample_N], np.inf)
        feasible_NM = np.asarray(latency_NX.min(axis=1)[:, None] <= table.budgets_ms_M[list(budget_M)])
        return cls(
            table, sample_N, budget_M, np.stack(best, axis=1).astype(np.float64), feasible_NM, latency_runs_ms_NXR
        )


def latency_runs(cache: Cache, sample_N: NDArray[np.int64]) -> NDArray[np.float32] | None:
    """Returns the timed runs of every setting, [N, X, R], NaN beyond the last; None where the cache kept none.

    A row without runs counts its `latency_ms` as often as others have runs, so that rows weigh the same.
    """
    every_SXR = cache.latency_runs_ms_SXR
    if every_SXR is None:
        return None
    rows = every_SXR[sample_N]
    if not np.isfinite(rows).any():
        return None
    without_NX = np.asarray(~np.isfinite(rows).any(axis=2))
    return np.where(without_NX[:, :, None], np.asarray(cache.latency_ms_SX)[sample_N][:, :, None], rows)


def request_stats(problem: Problem, setting_NM: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns `STATS` of every request under the settings chosen, [N, M, F]. None is missing."""
    table, rows_N = problem.table, problem.sample_N[:, None]
    accuracy_NM = table.accuracy_SX[rows_N, setting_NM].astype(np.float64)
    latency_ms_NM = table.latency_ms_SX[rows_N, setting_NM]
    inputs = (
        torch.from_numpy(table.accuracy_SX[rows_N, setting_NM]),
        torch.from_numpy(latency_ms_NM),
        torch.from_numpy(problem.budgets_ms),
        torch.from_numpy(table.complexity_X[setting_NM]),
        table.weights,
    )
    term_NM = {name: value.numpy() for name, value in reward_terms(*inputs).items()}
    reward_NM = reward(*inputs).numpy().astype(np.float64)
    late_NM = latency_ms_NM > problem.budgets_ms
    columns = {
        "accuracy": accuracy_NM,
        "accuracy_in_time": accuracy_NM * ~late_NM,
        "reward": reward_NM,
        **{f"reward_{name}": term_NM[name] for name in TERMS},
        "regret": problem.oracle_reward_NM - reward_NM,
        "latency_ms": latency_ms_NM,
        "violation_rate": late_NM,
        "feasible": problem.feasible_NM,
        "violation_of_feasible": late_NM & problem.feasible_NM,
    }
    return np.stack([np.asarray(columns[name], dtype=np.float64) for name in STATS], axis=2)


def pooled_latency_ms(problem: Problem, setting_NM: NDArray[np.int64]) -> NDArray[np.float32]:
    """Returns the latencies that percentiles pool, [N, M, R]: every timed run, else the one `latency_ms`."""
    if problem.latency_runs_ms_NXR is None:
        return problem.table.latency_ms_SX[problem.sample_N[:, None], setting_NM][:, :, None]
    return problem.latency_runs_ms_NXR[np.arange(len(setting_NM))[:, None], setting_NM]
