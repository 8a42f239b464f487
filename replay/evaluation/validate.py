"""`knobctl validate`: what trained controllers are worth on a cache, beside the baselines; and live, when asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...data.cache import Cache, accuracy_warnings, open_cache
from ...data.errors import KnobctlError
from ...data.protocols import Policy
from ..policies.ablations import ABLATIONS, ablations
from ..policies.decide import decide
from ..policies.fixed import cheapest, full_model
from ..policies.guard import GuardedPolicy
from ..policies.latency_estimate import LatencyEstimate, TokenCounts
from ..policies.lookup import AnyBudgetTable, BudgetTable
from ..policies.registry import DEFAULT_BASELINES, build_baselines
from ..policies.reward_table import RewardTable
from ..reward import RewardWeights
from .agreement import agreement
from .bootstrap import DEFAULT_RESAMPLES
from .build_report import evaluate, split_samples
from .choices import write_choices
from .live import ExecutorFactory, controller_overhead, live_figures, run_live, timings
from .load_controllers import load_controllers
from .report import EvaluationReport

SUBJECT = "controllers"


def validate_controllers(
    controllers_path: str | Path,
    cache_path: str | Path,
    *,
    split: str = "test",
    budgets_ms: Sequence[float] | None = None,
    guard: bool = False,
    choices_out: Path | None = None,
    seed: int = 0,
    baselines: Sequence[str] | None = None,
    with_ablations: bool = False,
    resamples: int = DEFAULT_RESAMPLES,
    weights: RewardWeights | None = None,
    executor_factory: ExecutorFactory | None = None,
    live_samples: int | None = None,
    live_budgets_ms: Sequence[float] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> EvaluationReport:
    """Returns the report of controllers and baselines on one split of a cache.

    budgets_ms: budgets of the cache's grid; all by default. Another one is an error that lists the grid.
    guard: also evaluate the controllers under the guard, beside the plain ones.
    choices_out: write every decision of the controllers (guarded, if asked for) there, as Parquet.
    baselines: names from `baselines.registry.BASELINES`; by default those that the cache supports of the usual ones.
    with_ablations: also Stage1 alone, Stage2 alone, and each knob alone.
    weights: the reward's; by default those that the controllers were trained with.
    executor_factory: makes the live executor and the samples for it from sample ids; None evaluates by replay only.
    live_samples: at most so many samples of the split are run live, drawn by the seed; all by default.
    live_budgets_ms: budgets of the live run, in the grid or not; by default those of the report.
    """
    cache = open_cache(Path(cache_path))
    loaded = load_controllers(controllers_path, cache, name=SUBJECT)
    table = RewardTable.from_cache(cache, weights or loaded.weights)
    _check_request(table, split, budgets_ms)
    warnings: list[str] = []
    policies, guarded = _policies(loaded.policy, cache, table, guard, with_ablations)
    policies += baseline_policies(baselines, table, seed, warnings)
    subjects = [SUBJECT] + ([guarded.name] if guarded else [])
    report = evaluate(
        cache,
        policies,
        split=split,
        budgets_ms=budgets_ms,
        table=table,
        subjects=subjects,
        resamples=resamples,
        seed=seed,
    )
    report.warnings[:0] = [*cache.warnings, *accuracy_warnings(cache), *loaded.warnings(cache), *warnings]
    report.controllers = loaded.describe()
    report.guard = guarded.to_dict() if guarded else None
    if choices_out is not None:
        found = report.decisions
        write_choices(choices_out, table, found.sample_N, found.budget_M, found.chosen[subjects[-1]])
        report.choices_path = str(choices_out)
    if executor_factory is not None:
        beside: list[Policy] = [full_model(table)]
        if len(table.indices("train")):
            beside.append(cheapest(table))
        report.live = validate_live(
            report,
            cache,
            [guarded or loaded.policy, *beside],
            executor_factory,
            live_samples=live_samples,
            live_budgets_ms=live_budgets_ms,
            seed=seed,
            progress=progress,
        )
    return report


def validate_live(
    report: EvaluationReport,
    cache: Cache,
    policies: Sequence[Policy],
    executor_factory: ExecutorFactory,
    *,
    live_samples: int | None = None,
    live_budgets_ms: Sequence[float] | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Runs policies live on the report's samples and returns figures, the first policy's own time, and agreement."""
    found = report.decisions
    table, sample_N = found.table, found.sample_N
    if live_samples is not None and live_samples < len(sample_N):
        if live_samples < 1:
            raise KnobctlError(f"--live-samples is {live_samples}: at least one sample must be run")
        sample_N = np.sort(np.random.default_rng(seed).choice(sample_N, live_samples, replace=False))
    budgets_ms = sorted({float(budget) for budget in live_budgets_ms or report.budgets_ms})
    for policy in policies:
        if policy.name not in found.chosen:
            found.chosen[policy.name] = decide(policy, table, found.sample_N, found.budget_M)
    executor, samples = executor_factory([table.tables.sample_ids[index] for index in sample_N])
    runs = run_live(executor, samples, policies, table, sample_N, budgets_ms, progress=progress)
    replayed = {
        (policy, int(sample), float(np.float32(table.budgets_ms_M[budget]))): int(setting_NM[row, column])
        for policy, setting_NM in found.chosen.items()
        for row, sample in enumerate(found.sample_N)
        for column, budget in enumerate(found.budget_M)
    }
    return {
        "n_samples": len(sample_N),
        "budgets_ms": budgets_ms,
        "policies": live_figures(
            runs, table, resamples=report.resamples, seed=report.seed, confidence=report.confidence
        ),
        "overhead": {policies[0].name: controller_overhead(runs, policies[0].name)},
        "timings": timings(runs, table.tables.sample_ids),
        "agreement": agreement(runs, {policy.name: policy for policy in policies}, replayed, cache, table),
    }


def baseline_policies(names: Sequence[str] | None, table: RewardTable, seed: int, warnings: list[str]) -> list[Policy]:
    """Returns the baselines named, each of which must be possible; or of the usual ones those that are."""
    if names is None:
        return build_baselines(DEFAULT_BASELINES, table, seed=seed, skipped=warnings)
    return build_baselines(names, table, seed=seed)


def _check_request(table: RewardTable, split: str, budgets_ms: Sequence[float] | None) -> None:
    """Finds what the user mistook before anything is fitted."""
    split_samples(table, split)
    table.budget_rows(budgets_ms or table.budgets_ms_M)


def _policies(
    policy: Policy, cache: Cache, table: RewardTable, guard: bool, with_ablations: bool
) -> tuple[list[Policy], GuardedPolicy | None]:
    policies: list[Policy] = [policy]
    guarded = None
    if guard:
        counts = TokenCounts.from_cache(cache, table.axes.axis_KX[0])
        guarded = GuardedPolicy(policy, LatencyEstimate(table, counts), AnyBudgetTable(table))
        policies.append(guarded)
    if with_ablations:
        policies += ablations(policy, BudgetTable(table), tuple(ABLATIONS))
    return policies, guarded
