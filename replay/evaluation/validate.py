"""`knobctl validate`: evaluates trained controllers and the baselines on a cache, and optionally live."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...controllers.card import write_controllers_card
from ...data.cache.accuracy import accuracy_warnings
from ...data.cache.reader import Cache, open_cache
from ...data.cards import CARD_NAME
from ...data.errors import KnobctlError
from ...data.progress import SILENT, Progress
from ...data.protocols import LiveFactory, Policy
from ..policies.ablations import ablations
from ..policies.decide import decide
from ..policies.fixed import cheapest, full_model
from ..policies.lookup import BudgetTable
from ..policies.registry import DEFAULT_BASELINES, build_baselines
from ..reward import RewardWeights
from ..tables import ReplayTables
from .agreement import agreement
from .bootstrap import DEFAULT_RESAMPLES
from .build_report import build_report, split_samples
from .card_results import report_results
from .choices import write_choices
from .live import controller_overhead, live_figures, run_live, timings
from .load_controllers import LoadedControllers, load_controllers
from .report import EvaluationReport
from .warnings import origin_warnings

SUBJECT = "controllers"


def validate_controllers(
    controllers_path: str | Path,
    cache_path: str | Path,
    *,
    split: str = "test",
    budgets_ms: Sequence[float] | None = None,
    within: float | None = None,
    card: bool = False,
    choices_out: Path | None = None,
    seed: int = 0,
    baselines: Sequence[str] | None = None,
    with_ablations: bool = False,
    resamples: int = DEFAULT_RESAMPLES,
    weights: RewardWeights | None = None,
    live: LiveFactory | None = None,
    live_samples: int | None = None,
    live_budgets_ms: Sequence[float] | None = None,
    progress: Progress = SILENT,
) -> EvaluationReport:
    """Returns the report of controllers and baselines on one split of a cache.

    Args:
        budgets_ms: budgets of the cache's grid (default: all).
        within: also evaluate the controllers under this service level (`controllers/service_levels.py`).
        card: write the report's figures to the card (`README.md`) of the controllers, which must be a directory.
        choices_out: write every choice of the controllers (under the service level, if given) to this Parquet file.
        baselines: names from `policies.registry.BASELINES`; by default, those of `DEFAULT_BASELINES` that the cache
            supports.
        with_ablations: also evaluate Stage1 alone, Stage2 alone, and each knob alone.
        weights: the reward's weights; by default those of the controllers' training.
        live: makes what runs live from sample ids (`knobctl.live_system`); None evaluates by replay only.
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
    policies = [loaded.policy] if within is None else [loaded.policy, loaded.within(within)]
    subjects = [policy.name for policy in policies]
    controlled = policies[-1]
    if with_ablations:
        policies += ablations(loaded.policy, BudgetTable(tables))
    policies += baseline_policies(baselines, tables, seed, warnings)
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
    if card:
        _write_card(controllers_path, loaded, report)
    if choices_out is not None:
        found = report.decisions
        write_choices(choices_out, tables, found.sample_N, found.budget_M, found.chosen[subjects[-1]])
        report.choices_path = str(choices_out)
    if live is not None:
        references: list[Policy] = [full_model(tables)]
        if len(tables.measured("train")):
            references.append(cheapest(tables))
        report.live = validate_live(
            report,
            cache,
            [controlled, *references],
            live,
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
    live: LiveFactory,
    *,
    live_samples: int | None = None,
    live_budgets_ms: Sequence[float] | None = None,
    seed: int = 0,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Runs policies live on the report's samples. The first one is that of the controllers.

    Returns their figures, the controllers' own time, all timings, and the agreement with replay.
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
    system = live([tables.sample_ids[index] for index in sample_N])
    controlled = policies[0].name
    runs = run_live(system, policies, tables, sample_N, budgets_ms, controlled=controlled, progress=progress)
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
        "overhead": {controlled: controller_overhead(runs, controlled)},
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


def _write_card(path: str | Path, loaded: LoadedControllers, report: EvaluationReport) -> None:
    directory = Path(path)
    if not directory.is_dir():
        raise KnobctlError(f"{path} is not a directory here, so its card cannot be written: leave --card out")
    if not write_controllers_card(directory, loaded.controllers, report_results(report, SUBJECT)):
        raise KnobctlError(
            f"{directory / CARD_NAME} has been changed and has no section of results: remove it to have it written anew"
        )
