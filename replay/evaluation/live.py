"""Runs policies on a live system: the model, or in tests the cache itself.

Two passes. In the first, an executor runs each request in two calls, whose tokens, settings and answers are compared
with replay bit by bit. An outcome depends only on sample and setting, so each setting is run once per sample, however
many budgets and policies choose it. The latency token also depends on the budget, and is computed for every request.
Samples are the outermost loop, so that an executor keeps the work of only one sample. In the second pass the same
requests are executed whole and timed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...data.errors import KnobctlError
from ...data.knobs import KnobSetting
from ...data.outcome import Outcome
from ...data.progress import SILENT, Progress
from ...data.protocols import Executor, LiveSystem, Policy, Requests, RequestTiming, RequestToTime
from ...data.samples import Sample
from ..reward import total
from ..tables import ReplayTables
from .bootstrap import ClusterBootstrap


@dataclass(frozen=True)
class LiveRun:
    """One request as it ran: the policy's inputs, its choice and the outcome."""

    policy: str
    sample: int  # index in the cache
    budget_ms: float
    setting: KnobSetting
    setting_index: int
    outcome: Outcome
    language_feature_D: NDArray[np.float32]
    token_D: NDArray[np.float16] | None  # None for policies that do not read it
    timing: RequestTiming | None = None  # None: not timed


def run_live(
    system: LiveSystem,
    policies: Sequence[Policy],
    tables: ReplayTables,
    sample_N: NDArray[np.int64],
    budgets_ms: Sequence[float],
    *,
    controlled: str | None = None,
    progress: Progress = SILENT,
) -> list[LiveRun]:
    """Runs every request of every policy and returns them, samples outermost. Budgets need not be in the grid.

    Args:
        controlled: the policy whose choices `system.time_requests` makes again while the clock runs; the others are
            timed under the settings that they chose.

    Raises KnobctlError for samples without question or image, and for imported results.
    """
    executor, samples, time_requests = system
    missing = [tables.sample_ids[index] for index in sample_N if tables.sample_ids[index] not in samples]
    if missing:
        raise KnobctlError(
            f"{len(missing)} samples of the cache cannot be run, because their question or image is not available "
            f"(the first: {missing[0]}): give the dataset or images that the cache was made from"
        )
    if tables.space.insertion_positions == (None,):
        raise KnobctlError("imported results record no insertion position, so they cannot be validated live")
    runs: list[LiveRun] = []
    with progress.steps("live", len(sample_N)) as advance:
        for index in sample_N.tolist():
            sample = samples[tables.sample_ids[index]]
            with executor.session(budgets_ms):
                feature_D = np.asarray(executor.language_feature(sample))
                outcomes: dict[KnobSetting, Outcome] = {}
                for policy in policies:
                    for budget_ms in budgets_ms:
                        runs.append(_run_one(executor, sample, index, feature_D, policy, tables, budget_ms, outcomes))
            advance()
    if time_requests is None:
        return runs
    requests = [
        RequestToTime(
            samples[tables.sample_ids[run.sample]],
            run.budget_ms,
            run.setting,
            run.outcome.output_tokens,
            run.policy == controlled,
        )
        for run in runs
    ]
    return [replace(run, timing=timing) for run, timing in zip(runs, time_requests(requests, progress), strict=True)]


def request_of(tables: ReplayTables, index: int, feature_D: NDArray[np.float32], budget_ms: float) -> Requests:
    """Returns one request as the live system makes it: without information about outcomes."""
    return Requests(
        sample_ids=(tables.sample_ids[index],),
        datasets=(tables.datasets[index],),
        language_feature_BD=feature_D[None],
        budget_ms_B=np.array([budget_ms], dtype=np.float32),
        vision_tokens_BT=tables.counts.vision_tokens_ST[index][None],
        text_tokens_B=tables.counts.text_tokens_S[index][None],
    )


def _run_one(
    executor: Executor[Any],
    sample: Sample,
    index: int,
    feature_D: NDArray[np.float32],
    policy: Policy,
    tables: ReplayTables,
    budget_ms: float,
    outcomes: dict[KnobSetting, Outcome],
) -> LiveRun:
    space, requests = tables.space, request_of(tables, index, feature_D, budget_ms)
    reads_token = policy.uses_latency_token
    tier_B, position_B = policy.choose_image(requests)
    tier, position = space.tiers[tier_B[0]], space.insertion_positions[position_B[0]]
    assert position is not None
    token_D, handle = executor.latency_token(sample, tier, position, budget_ms) if reads_token else (None, None)
    top_k_B, num_blocks_B = policy.choose_compute(
        requests, tier_B, position_B, None if token_D is None else np.asarray(token_D)[None]
    )
    setting = KnobSetting(tier, position, space.top_k[top_k_B[0]], space.num_blocks[num_blocks_B[0]])
    if setting not in outcomes:
        if handle is None:
            _, handle = executor.latency_token(sample, tier, position, budget_ms)
        outcomes[setting] = executor.finish(handle, setting.top_k, setting.num_blocks)
    return LiveRun(
        policy.name,
        index,
        budget_ms,
        setting,
        space.index(setting),
        outcomes[setting],
        feature_D,
        token_D,
    )


def live_figures(
    runs: Sequence[LiveRun], tables: ReplayTables, *, resamples: int, seed: int, confidence: float
) -> dict[str, Any]:
    """Returns figures of the live run with intervals: {policy: {"all_budgets": {...}, "per_budget": [{...}]}}."""
    figures: dict[str, Any] = {}
    for name in dict.fromkeys(run.policy for run in runs):
        own = [run for run in runs if run.policy == name]
        budgets = sorted({run.budget_ms for run in own})
        figures[name] = {
            "all_budgets": _figures(own, tables, resamples, seed, confidence),
            "per_budget": [
                {
                    "budget_ms": budget,
                    **_figures([run for run in own if run.budget_ms == budget], tables, resamples, seed, confidence),
                }
                for budget in budgets
            ],
        }
    return figures


def _figures(
    runs: Sequence[LiveRun], tables: ReplayTables, resamples: int, seed: int, confidence: float
) -> dict[str, Any]:
    timed = [(run, run.timing) for run in runs if run.timing is not None]  # accuracy is of the two calls
    record: dict[str, Any] = {"requests": len(runs), "without_latency": len(runs) - len(timed)}
    if not timed:
        return record
    latency_ms_B = np.array([timing.latency_ms for _, timing in timed], dtype=np.float32)
    budget_ms_B = np.array([run.budget_ms for run, _ in timed], dtype=np.float32)
    accuracy_B = np.array([run.outcome.accuracy for run, _ in timed], dtype=np.float32)
    setting_B = np.array([tables.space.index(timing.setting) for _, timing in timed], dtype=np.int64)
    terms = tables.terms(accuracy_B, latency_ms_B, budget_ms_B, setting_B)
    reward_B = total(terms)
    columns = {
        "accuracy": accuracy_B,
        "reward": reward_B,
        "latency_ms": latency_ms_B,
        "violation_rate": latency_ms_B > budget_ms_B,
    }
    bootstrap = ClusterBootstrap.draw(
        tables.cluster_S[[run.sample for run, _ in timed]], resamples=resamples, seed=seed, confidence=confidence
    )
    value_BF = np.stack(list(columns.values()), axis=1).astype(np.float64)
    mean_RF = bootstrap.resampled_means(value_BF)
    for column, name in enumerate(columns):
        record[name] = bootstrap.estimate(float(value_BF[:, column].mean()), mean_RF[:, column]).to_dict()
    # The quadratic penalty is unbounded, so that a single stall can dominate the mean: the median shows this.
    reward_below_BF = (reward_B <= np.median(reward_B))[:, None]
    median = bootstrap.quantile_estimate(reward_B, 0.5, bootstrap.resampled_means(reward_below_BF)[:, 0])
    record["reward_p50"] = median.to_dict()
    pooled = np.concatenate([timing.latency_runs_ms for _, timing in timed])
    record["latency_p50_ms"], record["latency_p95_ms"] = (float(q) for q in np.quantile(pooled, [0.5, 0.95]))
    return record


def controller_overhead(runs: Sequence[LiveRun], policy: str) -> dict[str, Any] | None:
    """Returns the controllers' time per request, in ms and as a share of the request: median and p95.

    None if the requests were not timed.
    """
    timed = [run.timing for run in runs if run.policy == policy and run.timing is not None]
    if not timed:
        return None
    own_ms_B = np.array([timing.controllers_ms for timing in timed])
    share_B = own_ms_B / np.array([timing.latency_ms for timing in timed])
    p50_ms, p95_ms = (float(q) for q in np.quantile(own_ms_B, [0.5, 0.95]))
    p50_share, p95_share = (float(q) for q in np.quantile(share_B, [0.5, 0.95]))
    return {"requests": len(timed), "p50_ms": p50_ms, "p95_ms": p95_ms, "p50_share": p50_share, "p95_share": p95_share}


def timings(runs: Sequence[LiveRun], sample_ids: Sequence[str]) -> list[dict[str, Any]]:
    """Returns every timing with all its runs, and the budgets that it holds for."""
    budgets_ms: dict[tuple[str, int, RequestTiming], list[float]] = {}
    for run in runs:
        if run.timing is not None:
            budgets_ms.setdefault((run.policy, run.sample, run.timing), []).append(run.budget_ms)
    return [
        {
            "policy": policy,
            "sample_id": sample_ids[sample],
            "budgets_ms": its_ms,
            **asdict(timing.setting),
            "latency_ms": timing.latency_ms,
            "latency_runs_ms": list(timing.latency_runs_ms),
            "controllers_ms": timing.controllers_ms,
        }
        for (policy, sample, timing), its_ms in budgets_ms.items()
    ]
