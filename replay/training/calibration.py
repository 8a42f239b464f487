"""Calibrates the service levels of trained controllers on images that neither trained nor selected them.

Half of `val`, divided by image, is set aside for this; the other half selects the weights. If the half has too few
images for the lowest level, nothing is set aside: it could promise nothing and would only weaken the selection.

A request that is served runs once, so a calibration request has the latency of one timed run and not the median over
the runs, which varies less.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ...controllers.checkpoint import Controllers
from ...controllers.service_levels import FACTORS, LEVELS, Calibration, ServiceLevel, calibrated_level, least_images
from ...controllers.two_stage import TwoStagePolicy
from ...data.protocols import Policy
from ...devices import single_thread
from ..bases.folds import fold_of_samples
from ..policies.decide import decide
from ..tables import ReplayTables

CALIBRATION = "calibration"  # the split that `with_calibration_split` adds
TIMED_REQUESTS = 64
ReadRuns = Callable[[NDArray[np.int64]], NDArray[np.float32] | None]  # samples -> timed runs [N, X, R]; None: not kept
_DIVISION_SEED = 1  # of `val` into halves
_DRAW_SEED = 2  # of one request from each image


def with_calibration_split(tables: ReplayTables) -> ReplayTables:
    """Returns tables in which half of the images of `val` are the split CALIBRATION, if that is enough for any level.

    Otherwise returns the tables unchanged.
    """
    val_N = tables.indices("val")
    if not len(val_N):
        return tables
    half_N = fold_of_samples(tables.cluster_S[val_N], 2, _DIVISION_SEED)
    calibration_N = val_N[half_N == 0]
    if len(np.unique(tables.cluster_S[calibration_N])) < least_images(min(LEVELS)):
        return tables
    return tables.with_splits({**tables.split_indices, "val": val_N[half_N == 1], CALIBRATION: calibration_N})


def calibrated(
    controllers: Controllers, tables: ReplayTables, read_runs: ReadRuns = lambda _sample_N: None
) -> Calibration | None:
    """Returns the service levels of controllers, from the split CALIBRATION; None without that split.

    The controllers have their expected latencies.

    Args:
        read_runs: returns the timed runs of samples; None if the cache keeps none, whose medians then stand in.
    """
    sample_N = tables.measured(CALIBRATION)
    if not len(sample_N):
        return None
    rng = np.random.default_rng(_DRAW_SEED)
    controllers_ms = decision_ms(TwoStagePolicy(controllers, budget_factor=1.0), tables)
    row_C, budget_C = drawn_requests(tables, sample_N, controllers_ms, rng)
    runs_NXR = read_runs(sample_N)
    latency_ms_CX = tables.latency_ms_SX[sample_N[row_C]] if runs_NXR is None else one_run(runs_NXR[row_C], rng)
    kept_FC = [
        kept(
            tables,
            TwoStagePolicy(controllers, budget_factor=factor),
            sample_N[row_C],
            budget_C,
            controllers_ms,
            latency_ms_CX,
        )
        for factor in FACTORS
    ]
    return Calibration(controllers_ms, calibrated_levels(np.stack(kept_FC)))


def calibrated_levels(kept_FC: NDArray[np.bool_]) -> tuple[ServiceLevel, ...]:
    """Returns every level, from whether each drawn request keeps its budget under each factor."""
    kept_F = kept_FC.sum(axis=1).tolist()
    return tuple(calibrated_level(level, kept_F, kept_FC.shape[1]) for level in LEVELS)


def decision_ms(policy: Policy, tables: ReplayTables) -> float:
    """Returns the policy's own time for one request of the training split: the median, on one thread, warmed up."""
    budget = len(tables.budgets_ms_M) - 1
    times_ms = []
    with single_thread():
        for index in np.resize(tables.measured("train"), TIMED_REQUESTS + 1):
            start = time.perf_counter()
            decide(policy, tables, np.array([index]), (budget,))
            times_ms.append(1e3 * (time.perf_counter() - start))
    return float(np.median(times_ms[1:]))  # the first one sets up


def can_be_met(tables: ReplayTables, sample_N: NDArray[np.int64], controllers_ms: float) -> NDArray[np.bool_]:
    """Returns whether some setting meets the budget of each request, [N, M]."""
    fastest_N = np.nanmin(tables.latency_ms_SX[sample_N], axis=1)
    return np.asarray(fastest_N[:, None] + controllers_ms <= tables.budgets_ms_M)


def drawn_requests(
    tables: ReplayTables, sample_N: NDArray[np.int64], controllers_ms: float, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draws one request that can be met from each image that has any: (place in sample_N, budget), each [images]."""
    row_C, budget_C = np.nonzero(can_be_met(tables, sample_N, controllers_ms))
    order_C = rng.permutation(len(row_C))
    _, first = np.unique(tables.cluster_S[sample_N[row_C[order_C]]], return_index=True)
    chosen = np.sort(order_C[first])
    return row_C[chosen], budget_C[chosen]


def one_run(runs_BXR: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Returns the latencies [B, X] of a timed run that is drawn for each request; NaN pads settings with fewer runs."""
    number_BX = np.isfinite(runs_BXR).sum(axis=2)
    drawn_BX = (rng.random((len(runs_BXR), 1)) * number_BX).astype(np.int64)  # the same run of all settings
    return np.take_along_axis(runs_BXR, drawn_BX[:, :, None], axis=2)[:, :, 0]


def kept(
    tables: ReplayTables,
    policy: Policy,
    sample_B: NDArray[np.int64],
    budget_B: NDArray[np.int64],
    controllers_ms: float,
    latency_ms_BX: NDArray[np.float32] | None = None,
) -> NDArray[np.bool_]:
    """Returns whether the policy keeps the budget of each request, [B].

    Args:
        latency_ms_BX: latencies of every setting for each request; None: those of the tables.
    """
    latency_ms_BX = tables.latency_ms_SX[sample_B] if latency_ms_BX is None else latency_ms_BX
    kept_B = np.zeros(len(sample_B), dtype=np.bool_)
    for budget in np.unique(budget_B).tolist():
        rows = np.flatnonzero(budget_B == budget)
        setting_B = decide(policy, tables, sample_B[rows], (budget,))[:, 0]
        latency_ms_B = latency_ms_BX[rows, setting_B]
        kept_B[rows] = latency_ms_B + controllers_ms <= tables.budgets_ms_M[budget]
    return kept_B


def kept_share(
    tables: ReplayTables, sample_N: NDArray[np.int64], kept_NM: NDArray[np.bool_], controllers_ms: float
) -> float:
    """Returns the share of requests kept among those that can be met: every image has the same weight, and each of its
    requests. NaN if no request can be met.
    """
    feasible_NM = can_be_met(tables, sample_N, controllers_ms)
    _, image_N = np.unique(tables.cluster_S[sample_N], return_inverse=True)
    feasible_C = np.bincount(image_N, feasible_NM.sum(axis=1))
    kept_C = np.bincount(image_N, (kept_NM & feasible_NM).sum(axis=1))
    some_C = feasible_C > 0
    return float((kept_C[some_C] / feasible_C[some_C]).mean()) if some_C.any() else float("nan")
