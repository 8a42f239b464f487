"""Figures with intervals for one group of samples, all policies on the same resamples.

Shapes: N samples, M budgets, K choices that a figure averages over (those of several seeds, or one), F statistics,
R resamples; P pools of latencies, Q percentiles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .bootstrap import ClusterBootstrap, Estimate, holm_adjusted
from .report import Comparison, Group
from .request_stats import STATS, RequestSet, pooled_latency_ms, request_stats

PERCENTILES = {"latency_p50_ms": 0.50, "latency_p95_ms": 0.95}
COMPARED = ("reward", "accuracy", "latency_ms", "violation_rate")
_AVERAGED = tuple(name for name in STATS if name not in ("feasible", "violation_of_feasible"))
_AT = {name: place for place, name in enumerate(STATS)}


@dataclass(frozen=True)
class PolicyFigures:
    """Figures of one policy, and its means: `mean_MF` as observed, `mean_RMF` in every resample."""

    group: Group
    mean_MF: NDArray[np.float64]
    mean_RMF: NDArray[np.float64]


def group_figures(
    requests: RequestSet, setting_NMK: Mapping[str, NDArray[np.int64]], bootstrap: ClusterBootstrap
) -> dict[str, PolicyFigures]:
    """Returns the figures of every policy. Regret does not require the oracle to be among them."""
    means = {name: _means(requests, chosen_NMK, bootstrap) for name, chosen_NMK in setting_NMK.items()}
    table = means.get("table")
    measured = {}
    for name, (mean_MF, mean_RMF) in means.items():
        percentiles = _percentiles(requests, setting_NMK[name], bootstrap)
        budgets = range(len(requests.budget_M))
        per_budget = tuple(
            {
                **_figures(mean_MF[m : m + 1], mean_RMF[:, m : m + 1], bootstrap),
                **percentiles[m],
                **_gap(mean_MF[[m]], mean_RMF[:, [m]], table and (table[0][[m]], table[1][:, [m]]), bootstrap),
            }
            for m in budgets
        )
        overall = {
            **_figures(mean_MF, mean_RMF, bootstrap),
            **percentiles[-1],
            **_gap(mean_MF, mean_RMF, table, bootstrap),
            "accuracy_budget_area": bootstrap.estimate(
                float(_area(mean_MF[:, _AT["accuracy"]], requests.budgets_ms)),
                _area(mean_RMF[:, :, _AT["accuracy"]], requests.budgets_ms),
            ),
        }
        group = Group(len(requests.sample_N), bootstrap.n_clusters, overall, per_budget)
        measured[name] = PolicyFigures(group, mean_MF, mean_RMF)
    return measured


def paired_comparisons(
    family: Sequence[tuple[str, str]], group: str, measured: Mapping[str, PolicyFigures], bootstrap: ClusterBootstrap
) -> list[Comparison]:
    """Returns the paired difference of each pair of measured policies; verdicts are corrected for all of the family."""
    gaps = [
        (measured[one].mean_MF - measured[other].mean_MF, measured[one].mean_RMF - measured[other].mean_RMF)
        for one, other in family
    ]
    reward = _AT["reward"]
    p_values = [bootstrap.p_value(gap_RMF[:, :, reward].mean(axis=1)) for _, gap_RMF in gaps]
    return [
        Comparison(
            policy,
            versus,
            group,
            {
                name: bootstrap.estimate(float(gap_MF[:, _AT[name]].mean()), gap_RMF[:, :, _AT[name]].mean(axis=1))
                for name in COMPARED
            },
            tuple(bootstrap.estimate(float(gap_MF[m, reward]), gap_RMF[:, m, reward]) for m in range(len(gap_MF))),
            adjusted_p_value=adjusted,
            significance=bootstrap.significance,
        )
        for (policy, versus), (gap_MF, gap_RMF), adjusted in zip(family, gaps, holm_adjusted(p_values), strict=True)
    ]


def _means(
    requests: RequestSet, setting_NMK: NDArray[np.int64], bootstrap: ClusterBootstrap
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    stats_NMF = np.mean([request_stats(requests, setting_NM) for setting_NM in np.moveaxis(setting_NMK, 2, 0)], axis=0)
    count, budgets, columns = stats_NMF.shape
    mean_RMF = bootstrap.resampled_means(stats_NMF.reshape(count, budgets * columns)).reshape(-1, budgets, columns)
    return stats_NMF.mean(axis=0), mean_RMF


def _figures(
    mean_MF: NDArray[np.float64], mean_RMF: NDArray[np.float64], bootstrap: ClusterBootstrap
) -> dict[str, Estimate]:
    """Returns means over some budgets; every request has the same weight."""
    mean_F, mean_RF = mean_MF.mean(axis=0), mean_RMF.mean(axis=1)
    figures = {name: bootstrap.estimate(float(mean_F[_AT[name]]), mean_RF[:, _AT[name]]) for name in _AVERAGED}
    missed, feasible = _AT["violation_of_feasible"], _AT["feasible"]
    with np.errstate(invalid="ignore", divide="ignore"):
        share, share_R = mean_F[missed] / mean_F[feasible], mean_RF[:, missed] / mean_RF[:, feasible]
    return {
        **figures,
        "feasible": bootstrap.estimate(float(mean_F[feasible]), mean_RF[:, feasible]),
        "violation_rate_of_feasible": bootstrap.estimate(float(share), share_R),
    }


def _gap(
    mean_MF: NDArray[np.float64],
    mean_RMF: NDArray[np.float64],
    table: tuple[NDArray[np.float64], NDArray[np.float64]] | None,
    bootstrap: ClusterBootstrap,
) -> dict[str, Estimate]:
    """Returns the share of the gap between the look-up table (0) and the oracle (1) that a policy closes.

    It may be negative. Empty if the look-up table was not evaluated.
    """
    if table is None:
        return {}
    gained = (mean_MF - table[0])[:, _AT["reward"]].mean()
    gained_R = (mean_RMF - table[1])[:, :, _AT["reward"]].mean(axis=1)
    to_gain, to_gain_R = table[0][:, _AT["regret"]].mean(), table[1][:, :, _AT["regret"]].mean(axis=1)
    closed = gap_closed(float(gained), float(to_gain))
    if closed is None:
        return {"gap_closed": Estimate(None, None, None)}
    with np.errstate(invalid="ignore", divide="ignore"):
        return {"gap_closed": bootstrap.estimate(closed, gained_R / to_gain_R)}


def gap_closed(gained: float, to_gain: float) -> float | None:
    """Returns `gained`, a policy's reward minus the look-up table's, over `to_gain`, the oracle's minus the table's.

    None if the table is as good as the oracle, so that there is no gap to close.
    """
    return gained / to_gain if to_gain > 1e-9 else None


def _percentiles(
    requests: RequestSet, setting_NMK: NDArray[np.int64], bootstrap: ClusterBootstrap
) -> list[dict[str, Estimate]]:
    """Returns latency percentiles pooled over samples and runs: for each budget, then over all budgets."""
    pooled_NMR = np.concatenate(
        [pooled_latency_ms(requests, setting_NM) for setting_NM in np.moveaxis(setting_NMK, 2, 0)], axis=2
    )
    pools = [pooled_NMR[:, m] for m in range(pooled_NMR.shape[1])] + [pooled_NMR.reshape(len(pooled_NMR), -1)]
    quantiles = list(PERCENTILES.values())
    known = [np.isfinite(pool) for pool in pools]
    values = [pool[there] for pool, there in zip(pools, known, strict=True)]
    limit_PQ = [np.quantile(value, quantiles) for value in values]
    # The share of runs at or below each percentile, in every resample, gives Woodruff's interval. Numerator and
    # denominator are both resampled, so that every run has equal weight if samples have different numbers of runs.
    under = [
        np.stack([((pool <= limit) & there).sum(axis=1) for limit in limits], axis=1)
        for pool, there, limits in zip(pools, known, limit_PQ, strict=True)
    ]
    runs_NP = np.stack([there.sum(axis=1) for there in known], axis=1)
    under_RPQ = bootstrap.resampled_means(np.concatenate(under, axis=1)).reshape(-1, len(pools), len(quantiles))
    share_RPQ = under_RPQ / bootstrap.resampled_means(runs_NP)[:, :, None]
    return [
        {
            name: bootstrap.quantile_estimate(values[place], quantile, share_RPQ[:, place, column])
            for column, (name, quantile) in enumerate(PERCENTILES.items())
        }
        for place in range(len(pools))
    ]


def _area(accuracy_M: NDArray[np.float64], budgets_ms: NDArray[np.float32]) -> NDArray[np.float64]:
    """Returns the area under the accuracy-budget curve (trapezoids over budgets in ms) over the range of budgets.

    This is the mean accuracy for a budget drawn uniformly from the range; with one budget, the accuracy there.
    """
    if len(budgets_ms) == 1:
        return np.asarray(accuracy_M[..., 0])
    budgets = budgets_ms.astype(np.float64)
    return np.asarray(np.trapezoid(accuracy_M, budgets, axis=-1) / (budgets[-1] - budgets[0]))
