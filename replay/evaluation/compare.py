"""`knobctl compare`: several controllers side by side, with paired differences to the tables and the neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...data.cache.accuracy import accuracy_warnings
from ...data.cache.reader import open_cache
from ...data.protocols import Policy
from ..policies.ablations import ablations
from ..policies.lookup import BudgetTable
from ..policies.registry import BASELINES
from ..reward import RewardWeights
from ..tables import ReplayTables
from .bootstrap import DEFAULT_RESAMPLES
from .build_report import build_report, split_samples
from .load_controllers import LoadedControllers, load_controllers
from .report import EvaluationReport
from .validate import baseline_policies
from .warnings import origin_warnings, weights_warnings


def compare(
    cache_path: str | Path,
    controllers_paths: Sequence[str | Path] = (),
    *,
    split: str = "test",
    budgets_ms: Sequence[float] | None = None,
    baselines: Sequence[str] | None = None,
    with_ablations: bool = False,
    weights: RewardWeights | None = None,
    resamples: int = DEFAULT_RESAMPLES,
    seed: int = 0,
) -> EvaluationReport:
    """Returns the report of several controllers and the baselines on one split of a cache.

    Without controllers it is a report of the baselines, which any cache supports, including imported results. All are
    evaluated with one reward: `weights`, or those that all controllers were trained with, or the default.

    Raises CheckpointError or CacheMismatch for controllers that cannot be loaded or do not fit the cache, and
    KnobctlError for a split, budget or baseline that the cache does not have or support.
    """
    cache = open_cache(cache_path)
    names = short_names([Path(path) for path in controllers_paths])
    loaded = [load_controllers(path, cache, name=name) for name, path in zip(names, controllers_paths, strict=True)]
    tables = ReplayTables.from_cache(cache, weights or _common_weights(loaded))
    split_samples(tables, split)  # check the request before anything is fitted
    tables.grid_indices(budgets_ms)
    warnings = [*cache.warnings, *accuracy_warnings(cache), *weights_warnings(loaded, tables.weights)]
    policies: list[Policy] = [one.policy for one in loaded]
    subjects = [policy.name for policy in policies]
    if with_ablations:
        policies += [part for policy in list(policies) for part in ablations(policy, BudgetTable(tables))]
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
    report.warnings[:0] = [*warnings, *origin_warnings(loaded, cache)]
    report.controllers = {name: one.describe() for name, one in zip(names, loaded, strict=True)}
    return report


def _common_weights(loaded: Sequence[LoadedControllers]) -> RewardWeights | None:
    """Returns the reward weights of all controllers' training; None if they differ or are not recorded."""
    found = {one.weights for one in loaded}
    return found.pop() if len(found) == 1 else None


def short_names(paths: Sequence[Path]) -> list[str]:
    """Returns the last part of each path, preceded by as many parts as are needed to make all names distinct.

    A name that equals that of a baseline gets the suffix "(controllers)".
    """
    for length in range(1, max((len(path.parts) for path in paths), default=1) + 1):
        names = ["/".join(path.parts[-length:]) for path in paths]
        if len(set(names)) == len(names):
            return [f"{name} (controllers)" if name in BASELINES else name for name in names]
    return [f"{path}#{place}" for place, path in enumerate(paths)]  # one path was given twice
