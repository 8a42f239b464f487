"""Runs policies on an executor: the live model, or the cache itself in tests.

An outcome depends only on sample and setting, so each setting is run once per sample, however many budgets and
policies choose it. The latency token also depends on the budget, and is computed for every request. Samples are the
outermost loop, so that an executor keeps the work of only one sample.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...data.errors import KnobctlError
from ...data.knobs import KnobSetting
from ...data.progress import SILENT, Progress
from ...data.protocols import Executor, Outcome, Policy, Requests
from ...data.samples import Sample
from ..reward import total
from ..tables import ReplayTables
from .bootstrap import ClusterBootstrap

ExecutorFactory = Callable[[Sequence[str]], tuple[Executor[Any], Mapping[str, Sample]]]


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
    controller_ms: float  # duration of the policy's two calls

    @property
    def latency_ms(self) -> float:
        return float("nan") if self.outcome.latency_ms is None else self.outcome.latency_ms


def run_live(
    executor: Executor[Any],
    samples: Mapping[str, Sample],
    policies: Sequence[Policy],
    tables: ReplayTables,
    sample_N: NDArray[np.int64],
    budgets_ms: Sequence[float],
    *,
    progress: Progress = SILENT,
    clock: Callable[[], float] = time.perf_counter,
) -> list[LiveRun]:
    """Runs every request of every policy and returns them, samples outermost. Budgets need not be in the grid.

    Raises KnobctlError for samples without question or image, and for imported results.
    """
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
                        request = (executor, sample, index, feature_D, policy, tables, budget_ms, outcomes, clock)
                        if index == sample_N[0]:  # a policy's first call under a budget includes one-time set-up
                            _run_one(*request)
                        runs.append(_run_one(*request))
            advance()
    return runs


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
    clock: Callable[[], float],
) -> LiveRun:
    space, requests = tables.space, request_of(tables, index, feature_D, budget_ms)
    reads_token = policy.uses_latency_token
    start = clock()
    tier_B, position_B = policy.choose_image(requests)
    chosen = clock() - start
    tier, position = space.tiers[tier_B[0]], space.insertion_positions[position_B[0]]
    assert position is not None
    token_D, handle = executor.latency_token(sample, tier, position, budget_ms) if reads_token else (None, None)
    start = clock()
    top_k_B, num_blocks_B = policy.choose_compute(
        requests, tier_B, position_B, None if token_D is None else np.asarray(token_D)[None]
    )
    chosen += clock() - start
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
        1e3 * chosen,
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
    timed = [run for run in runs if np.isfinite(run.latency_ms)]
    record: dict[str, Any] = {"requests": len(runs), "without_latency": len(runs) - len(timed)}
    if not timed:
        return record
    latency_ms_B = np.array([run.latency_ms for run in timed], dtype=np.float32)
    budget_ms_B = np.array([run.budget_ms for run in timed], dtype=np.float32)
    accuracy_B = np.array([run.outcome.accuracy for run in timed], dtype=np.float32)
    setting_B = np.array([run.setting_index for run in timed], dtype=np.int64)
    terms = tables.terms(accuracy_B, latency_ms_B, budget_ms_B, setting_B)
    reward_B = total(terms)
    columns = {
        "accuracy": accuracy_B,
        "reward": reward_B,
        "latency_ms": latency_ms_B,
        "violation_rate": latency_ms_B > budget_ms_B,
    }
    bootstrap = ClusterBootstrap.draw(
        tables.cluster_S[[run.sample for run in timed]], resamples=resamples, seed=seed, confidence=confidence
    )
    value_BF = np.stack(list(columns.values()), axis=1).astype(np.float64)
    mean_RF = bootstrap.resampled_means(value_BF)
    for column, name in enumerate(columns):
        record[name] = bootstrap.estimate(float(value_BF[:, column].mean()), mean_RF[:, column]).to_dict()
    # The quadratic penalty is unbounded, so that a single stall can dominate the mean: the median shows this.
    reward_below_BF = (reward_B <= np.median(reward_B))[:, None]
    median = bootstrap.quantile_estimate(reward_B, 0.5, bootstrap.resampled_means(reward_below_BF)[:, 0])
    record["reward_p50"] = median.to_dict()
    pooled = np.concatenate([np.asarray(run.outcome.latency_runs_ms or (run.latency_ms,)) for run in timed])
    record["latency_p50_ms"], record["latency_p95_ms"] = (float(q) for q in np.quantile(pooled, [0.5, 0.95]))
    return record


def controller_overhead(runs: Sequence[LiveRun], policy: str) -> dict[str, Any]:
    """Returns the policy's own time per request, in ms and as a share of the whole request: median and p95."""
    own = [run for run in runs if run.policy == policy]
    overhead_ms_B = np.array([run.controller_ms for run in own])
    latency_ms_B = np.array([run.latency_ms for run in own])
    share_B = overhead_ms_B / (overhead_ms_B + latency_ms_B)
    share_B = share_B[np.isfinite(share_B)]
    p50_ms, p95_ms = (float(q) for q in np.quantile(overhead_ms_B, [0.5, 0.95]))
    p50_share, p95_share = (float(q) for q in np.quantile(share_B, [0.5, 0.95])) if len(share_B) else (None, None)
    return {"requests": len(own), "p50_ms": p50_ms, "p95_ms": p95_ms, "p50_share": p50_share, "p95_share": p95_share}


def timings(runs: Sequence[LiveRun], sample_ids: Sequence[str]) -> list[dict[str, Any]]:
    """Returns every setting that ran, once per sample, with all timed runs."""
    outcomes = {(run.sample, run.setting): run.outcome for run in runs}
    return [
        {
            "sample_id": sample_ids[sample],
            **asdict(setting),
            "latency_ms": outcome.latency_ms,
            "latency_runs_ms": list(outcome.latency_runs_ms),
        }
        for (sample, setting), outcome in outcomes.items()
    ]
