"""Fits the expected latency of each setting (`controllers/expected_latency.py`) on the training split.

Shapes: N samples, X settings, T tiers, G datasets, F inputs.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from ..controllers.expected_latency import INPUTS, ExpectedLatency, LatencyError, TypicalRequest
from .tables import ReplayTables

RIDGE = 1e-3  # penalty on standardised inputs, per sample
LEAST_SPREAD = 1e-3  # relative; a token count that varies less determines no slope


def ridge_solution(
    design_NF: NDArray[np.float64], value_N: NDArray[np.float64], penalty: float = RIDGE
) -> NDArray[np.float64]:
    """Returns the coefficients, [F], of ridge regression; the first column, the intercept, is not penalised."""
    penalty_FF = penalty * len(design_NF) * np.eye(design_NF.shape[1])
    penalty_FF[0, 0] = 0.0
    mean = value_N.mean()
    coefficient_F = np.linalg.solve(
        design_NF.T @ design_NF + penalty_FF + 1e-9 * np.eye(len(penalty_FF)), design_NF.T @ (value_N - mean)
    )
    coefficient_F[0] += mean
    return coefficient_F


def fit_expected_latency(tables: ReplayTables) -> ExpectedLatency:
    """Returns the expected latencies, fitted on `train`, with their errors on `val` if that has other samples.

    A token count that some timed training sample lacks is not an input. Slopes are not negative: a token costs time.
    """
    train_N, held_out_N = tables.indices("train"), tables.measured("val")
    counts = tables.counts
    timed_NX = np.isfinite(tables.latency_ms_SX[train_N])
    vision_NX = counts.vision_tokens_ST[train_N][:, tables.space.value_index_KX[0]]
    recorded = {
        "vision_tokens": bool(np.isfinite(vision_NX[timed_NX]).all()),
        "text_tokens": bool(np.isfinite(counts.text_tokens_S[train_N[timed_NX.any(axis=1)]]).all()),
    }
    inputs = [name for name in INPUTS if recorded[name]]
    names_N = [tables.datasets[index] for index in train_N]
    made = ExpectedLatency(tables.space, sorted(set(names_N)), inputs)
    member_NG = np.array([[name == dataset for dataset in made.datasets] for name in names_N], dtype=np.float64)
    for setting in np.flatnonzero(timed_NX.any(axis=0)):
        known_N = timed_NX[:, setting]
        latency_ms_N = tables.latency_ms_SX[train_N[known_N], setting].astype(np.float64)
        columns = {
            "vision_tokens": vision_NX[known_N, setting].astype(np.float64),
            "text_tokens": counts.text_tokens_S[train_N[known_N]].astype(np.float64),
        }
        offset_G, slope = _fit(member_NG[known_N], {name: columns[name] for name in inputs}, latency_ms_N)
        made.offset_ms_GX[:, setting] = torch.from_numpy(offset_G)
        made.vision_ms_X[setting] = slope.get("vision_tokens", 0.0)
        made.text_ms_X[setting] = slope.get("text_tokens", 0.0)
        made.least_ms_X[setting] = float(latency_ms_N.min())
        made.known_X[setting] = True
    for group, dataset in enumerate(made.datasets):
        own_N = train_N[member_NG[:, group] > 0]
        means = [_mean(counts.vision_tokens_ST[own_N, -1]), _mean(counts.output_tokens_S[own_N])]
        if all(value > 0 for value in means):  # not NaN either
            made.typical[dataset] = TypicalRequest(*means)
    if len(np.setdiff1d(held_out_N, train_N)):
        made.held_out = latency_error(made, tables, np.setdiff1d(held_out_N, train_N))
    return made


def expected_latency_ms(
    made: ExpectedLatency, tables: ReplayTables, sample_N: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Returns the expected latency of every setting for cached samples, [N, X]; NaN as in `expected_ms`."""
    return made.expected_ms(
        [tables.datasets[index] for index in sample_N],
        tables.counts.vision_tokens_ST[sample_N],
        tables.counts.text_tokens_S[sample_N],
    )


def latency_error(made: ExpectedLatency, tables: ReplayTables, sample_N: NDArray[np.int64]) -> LatencyError | None:
    """Returns the errors on these samples; None if none of them has both an expected and a measured latency."""
    sample_N = np.array([index for index in sample_N if tables.datasets[index] in made.datasets], dtype=np.int64)
    off_NX = np.abs(expected_latency_ms(made, tables, sample_N) / tables.latency_ms_SX[sample_N] - 1.0)
    known_NX = np.isfinite(off_NX)
    if not known_NX.any():
        return None
    median, p95 = np.quantile(off_NX[known_NX], [0.5, 0.95]).tolist()
    return LatencyError(int(known_NX.any(axis=1).sum()), int(known_NX.sum()), median, p95)


def _mean(value_N: NDArray[np.float32]) -> float:
    """Returns the mean of the known values; NaN without any."""
    known_N = value_N[np.isfinite(value_N)]
    return float(known_N.mean()) if len(known_N) else float("nan")


def _fit(
    member_NG: NDArray[np.float64], columns: dict[str, NDArray[np.float64]], latency_ms_N: NDArray[np.float64]
) -> tuple[NDArray[np.float64], dict[str, float]]:
    """Returns the offset of each dataset, [G], and the slope of each input that has one."""
    centre = {name: float(value_N.mean()) for name, value_N in columns.items()}
    spread = {name: float(value_N.std()) for name, value_N in columns.items()}
    used = [name for name in columns if spread[name] > LEAST_SPREAD * abs(centre[name])]
    while True:
        scaled = [(columns[name] - centre[name]) / spread[name] for name in used]
        design_NF = np.column_stack([np.ones(len(latency_ms_N)), member_NG, *scaled])
        coefficient_F = ridge_solution(design_NF, latency_ms_N)
        slope = dict(zip(used, coefficient_F[1 + member_NG.shape[1] :].tolist(), strict=True))
        worst = min(slope, key=lambda name: slope[name], default=None)
        if worst is None or slope[worst] >= 0:
            break
        used.remove(worst)
    slope = {name: value / spread[name] for name, value in slope.items()}
    base = coefficient_F[0] - sum(slope[name] * centre[name] for name in slope)
    return base + coefficient_F[1 : 1 + member_NG.shape[1]], slope
