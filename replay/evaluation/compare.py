"""`knobctl compare`: any number of controllers side by side, each against the tables and the neighbours, paired."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...data.cache import accuracy_warnings, open_cache
from ...data.protocols import Policy
from ..policies.ablations import ablations
from ..policies.lookup import BudgetTable
from ..policies.registry import BASELINES
from ..policies.reward_table import RewardTable
from ..reward import RewardWeights
from .bootstrap import DEFAULT_RESAMPLES
from .build_report import evaluate, split_samples
from .load_controllers import LoadedControllers, load_controllers
from .report import EvaluationReport
from .validate import baseline_policies


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

    Without controllers it is a report of the baselines, which any cache supports, imported results among them. All are
    measured with one reward: `weights`, else those that all controllers were trained with, else the default.
    """
    cache = open_cache(Path(cache_path))
    names = short_names([Path(path) for path in controllers_paths])
    loaded = [load_controllers(path, cache, name=name) for name, path in zip(names, controllers_paths, strict=True)]
    table = RewardTable.from_cache(cache, weights or _common_weights(loaded))
    split_samples(table, split)
    table.budget_rows(budgets_ms or table.budgets_ms_M)
    warnings = [*cache.warnings, *accuracy_warnings(cache)]
    for name, one in zip(names, loaded, strict=True):
        if one.weights is not None and one.weights != table.weights:
            trained = one.weights.to_dict()
            warnings.append(f"{name} was trained with other reward weights ({trained}) than this report's")
    policies: list[Policy] = [one.policy for one in loaded]
    subjects = [policy.name for policy in policies]
    if with_ablations:
        policies += [part for policy in list(policies) for part in ablations(policy, BudgetTable(table))]
    policies += baseline_policies(baselines, table, seed, warnings)
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
    report.warnings[:0] = [*warnings, *(line for one in loaded for line in one.warnings(cache))]
    report.controllers = {name: one.describe() for name, one in zip(names, loaded, strict=True)}
    return report


def _common_weights(loaded: Sequence[LoadedControllers]) -> RewardWeights | None:
    """Returns the reward weights that all controllers were trained with; None where they differ or do not say."""
    found = {one.weights for one in loaded}
    return found.pop() if len(found) == 1 else None


def short_names(paths: Sequence[Path]) -> list[str]:
    """Returns the last part of each path, with as many parts before it as tell all of them apart.

    A directory that is called like a baseline is said to hold controllers.
    """
    for length in range(1, max((len(path.parts) for path in paths), default=1) + 1):
        names = ["/".join(path.parts[-length:]) for path in paths]
        if len(set(names)) == len(names):
            return [f"{name} (controllers)" if name in BASELINES else name for name in names]
    return [f"{path}#{place}" for place, path in enumerate(paths)]  # the same one twice
