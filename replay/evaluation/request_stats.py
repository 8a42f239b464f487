"""Statistics of single requests under one policy's choices: accuracy, reward and its terms, latency, misses.

Shapes: N samples, M budgets, X settings, R timed runs, F statistics.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..reward import TERMS, total
from ..tables import ReplayTables

if TYPE_CHECKING:
    from ...data.cache.reader import Cache

STATS = (
    "accuracy",
    "accuracy_in_time",  # an answer over budget counts as wrong
    "reward",
    *(f"reward_{term}" for term in TERMS),
    "regret",  # the oracle's reward minus the policy's
    "latency_ms",
    "violation_rate",  # share over budget
    "feasible",  # some setting of the sample meets the budget
    "violation_of_feasible",  # over budget although some setting meets it
)


@dataclass(frozen=True)
class RequestSet:
    """The requests that policies are measured on, every sample under every budget, and the best reward of each."""

    tables: ReplayTables
    sample_N: NDArray[np.int64]
    budget_M: tuple[int, ...]  # indices into the cache's grid
    oracle_reward_NM: NDArray[np.float64]
    feasible_NM: NDArray[np.bool_]
    latency_runs_ms_NXR: NDArray[np.float32] | None

    @property
    def budgets_ms(self) -> NDArray[np.float32]:
        return self.tables.budgets_ms_M[list(self.budget_M)]

    @property
    def unmet_budgets_ms(self) -> NDArray[np.float32]:
        """The budgets that no setting of any sample meets."""
        return self.budgets_ms[~self.feasible_NM.any(axis=0)]

    @classmethod
    def of(
        cls,
        tables: ReplayTables,
        sample_N: NDArray[np.int64],
        budget_M: tuple[int, ...],
        latency_runs_ms_NXR: NDArray[np.float32] | None = None,
    ) -> RequestSet:
        best = [
            np.nanmax(tables.reward_BX(sample_N, np.full(len(sample_N), tables.budgets_ms_M[budget])), axis=1)
            for budget in budget_M
        ]
        latency_NX = np.where(tables.available_SX[sample_N], tables.latency_ms_SX[sample_N], np.inf)
        feasible_NM = np.asarray(latency_NX.min(axis=1)[:, None] <= tables.budgets_ms_M[list(budget_M)])
        oracle_reward_NM = np.stack(best, axis=1).astype(np.float64)
        return cls(tables, sample_N, budget_M, oracle_reward_NM, feasible_NM, latency_runs_ms_NXR)

    def subset(self, rows: NDArray[np.int64]) -> RequestSet:
        """Returns the requests of some samples, by their position in `sample_N`."""
        runs = self.latency_runs_ms_NXR
        return replace(
            self,
            sample_N=self.sample_N[rows],
            oracle_reward_NM=self.oracle_reward_NM[rows],
            feasible_NM=self.feasible_NM[rows],
            latency_runs_ms_NXR=None if runs is None else runs[rows],
        )


def latency_runs(cache: Cache, sample_N: NDArray[np.int64]) -> NDArray[np.float32] | None:
    """Returns the timed runs of every setting, [N, X, R], padded with NaN; None if the cache has none.

    A row without runs repeats its `latency_ms` as often as others have runs, so that all rows have equal weight.
    """
    every_SXR = cache.latency_runs_ms_SXR
    if every_SXR is None:
        return None
    rows = every_SXR[sample_N]
    if not np.isfinite(rows).any():
        return None
    without_NX = np.asarray(~np.isfinite(rows).any(axis=2))
    return np.where(without_NX[:, :, None], np.asarray(cache.latency_ms_SX)[sample_N][:, :, None], rows)


def request_stats(requests: RequestSet, setting_NM: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns `STATS` of every request under the chosen settings, [N, M, F]. Contains no missing values."""
    tables, rows_N = requests.tables, requests.sample_N[:, None]
    accuracy_NM, latency_ms_NM = tables.accuracy_SX[rows_N, setting_NM], tables.latency_ms_SX[rows_N, setting_NM]
    terms = tables.terms(accuracy_NM, latency_ms_NM, requests.budgets_ms, setting_NM)
    reward_NM = total(terms).astype(np.float64)
    late_NM = latency_ms_NM > requests.budgets_ms
    columns = {
        "accuracy": accuracy_NM,
        "accuracy_in_time": accuracy_NM * ~late_NM,
        "reward": reward_NM,
        **{f"reward_{name}": term_NM for name, term_NM in terms.items()},
        "regret": requests.oracle_reward_NM - reward_NM,
        "latency_ms": latency_ms_NM,
        "violation_rate": late_NM,
        "feasible": requests.feasible_NM,
        "violation_of_feasible": late_NM & requests.feasible_NM,
    }
    return np.stack([np.asarray(columns[name], dtype=np.float64) for name in STATS], axis=2)


def pooled_latency_ms(requests: RequestSet, setting_NM: NDArray[np.int64]) -> NDArray[np.float32]:
    """Returns the latencies that percentiles pool, [N, M, R]: all timed runs, or else the one `latency_ms`."""
    if requests.latency_runs_ms_NXR is None:
        return requests.tables.latency_ms_SX[requests.sample_N[:, None], setting_NM][:, :, None]
    return requests.latency_runs_ms_NXR[np.arange(len(setting_NM))[:, None], setting_NM]
