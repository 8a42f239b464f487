"""`knobctl validate`: evaluates trained controllers and the baselines on a cache, and optionally live."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...data.cache.accuracy import accuracy_warnings
from ...data.cache.reader import Cache, open_cache
from ...data.errors import KnobctlError
from ...data.progress import SILENT, Progress
from ...data.protocols import Policy
from ..policies.ablations import ablations
from ..policies.decide import decide
from ..policies.fixed import cheapest, full_model
from ..policies.guard import GuardedPolicy
from ..policies.latency_estimate import LatencyEstimate, TokenCounts
from ..policies.lookup import AnyBudgetTable, BudgetTable
from ..policies.registry import DEFAULT_BASELINES, build_baselines
from ..reward import RewardWeights
from ..tables import ReplayTables
from .agreement import agreement
from .bootstrap import DEFAULT_RESAMPLES
from .build_report import build_report, split_samples
from .choices import write_choices
from .live import ExecutorFactory, controller_overhead, live_figures, run_live, timings
from .load_controllers import load_controllers
from .report import EvaluationReport
from .warnings import origin_warnings

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
    progress: Progress = SILENT,
) -> EvaluationReport:
    """Returns the report of controllers and baselines on one split of a cache.

    Args:
        budgets_ms: budgets of the cache's grid (default: all).
        guard: also evaluate the controllers with the guard, in addition to the plain ones.
        choices_out: write every choice of the controllers (the guarded ones, if evaluated) to this Parquet file.
        baselines: names from `policies.registry.BASELINES`; by default, those of `DEFAULT_BASELINES` that the cache
            supports.
        with_ablations: also evaluate Stage1 alone, Stage2 alone, and each knob alone.
        weights: the reward's weights; by default those of the controllers' training.
        executor_factory: makes the live executor and its samples from sample ids; None evaluates by replay only.
        live_samples: maximum number of samples to run live, drawn with the seed (default: all).
        live_budgets_ms: budgets of the live run, in the grid or not (default: those of the report).

    Raises:
        CheckpointError, CacheMismatch: the controllers cannot be loaded or do not fit the cache.
        KnobctlError: a split, budget or baseline that the cache does not have or support.
    """
    cache = open_cache(cache_path)
    loaded = load_controllers(controllers_path, cache, name=SUBJECT)
    tables = ReplayTables.from_cache(cache, weights or loaded.weights)
    split_samples(tables, split)  # check the request before anything is fitted
    tables.grid_indices(budgets_ms)
    warnings: list[str] = []
    policies, guarded = _policies(loaded.policy, cache, tables, guard, with_ablations)
    policies += baseline_policies(baselines, tables, seed, warnings)
    subjects = [SUBJECT] + ([guarded.name] if guarded else [])
    report = build_report(
        cache,
        policies,
        split=split,
        budgets_ms=budgets_ms,
        tables=tables,
        subjects=subjects,
        resamples=resamples,
        seed=seed,
    )
    report.warnings[:0] = [*cache.warnings, *accuracy_warnings(cache), *origin_warnings([loaded], cache), *warnings]
    report.controllers = loaded.describe()
    report.guard = guarded.to_dict() if guarded else None
    if choices_out is not None:
        found = report.decisions
        write_choices(choices_out, tables, found.sample_N, found.budget_M, found.chosen[subjects[-1]])
        report.choices_path = str(choices_out)
    if executor_factory is not None:
        references: list[Policy] = [full_model(tables)]
        if len(tables.measured("train")):
            references.append(cheapest(tables))
        report.live = validate_live(
            report,
            cache,
            [guarded or loaded.policy, *references],
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
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Runs policies live on the report's samples.

    Returns their figures, the first policy's own time, all timings, and the agreement with replay.
    """
    found = report.decisions
    tables, sample_N = found.tables, found.sample_N
    if live_samples is not None and live_samples < len(sample_N):
        if live_samples < 1:
            raise KnobctlError(f"--live-samples is {live_samples}: at least one sample must be run")
        sample_N = np.sort(np.random.default_rng(seed).choice(sample_N, live_samples, replace=False))
    budgets_ms = sorted({float(budget) for budget in live_budgets_ms or report.budgets_ms})
    for policy in policies:
        if policy.name not in found.chosen:
            found.chosen[policy.name] = decide(policy, tables, found.sample_N, found.budget_M)
    executor, samples = executor_factory([tables.sample_ids[index] for index in sample_N])
    runs = run_live(executor, samples, policies, tables, sample_N, budgets_ms, progress=progress)
    replayed = {
        (policy, int(sample), float(np.float32(tables.budgets_ms_M[budget]))): int(setting_NM[row, column])
        for policy, setting_NM in found.chosen.items()
        for row, sample in enumerate(found.sample_N)
        for column, budget in enumerate(found.budget_M)
    }
    return {
        "n_samples": len(sample_N),
        "budgets_ms": budgets_ms,
        "policies": live_figures(
            runs, tables, resamples=report.resamples, seed=report.seed, confidence=report.confidence
        ),
        "overhead": {policies[0].name: controller_overhead(runs, policies[0].name)},
        "timings": timings(runs, tables.sample_ids),
        "agreement": agreement(runs, {policy.name: policy for policy in policies}, replayed, cache, tables),
    }


def baseline_policies(
    names: Sequence[str] | None, tables: ReplayTables, seed: int, warnings: list[str]
) -> list[Policy]:
    """Returns the named baselines, all of which must be possible.

    Without names, returns the default ones that are possible, and appends a warning for each of the others.
    """
    if names is None:
        return build_baselines(DEFAULT_BASELINES, tables, seed=seed, skipped=warnings)
    return build_baselines(names, tables, seed=seed)


def _policies(
    policy: Policy, cache: Cache, tables: ReplayTables, guard: bool, with_ablations: bool
) -> tuple[list[Policy], GuardedPolicy | None]:
    policies: list[Policy] = [policy]
    guarded = None
    if guard:
        counts = TokenCounts.from_cache(cache, tables.space.value_index_KX[0])
        guarded = GuardedPolicy(policy, LatencyEstimate(tables, counts), AnyBudgetTable(tables))
        policies.append(guarded)
    if with_ablations:
        policies += ablations(policy, BudgetTable(tables))
    return policies, guarded
