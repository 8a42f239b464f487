"""`knobctl compare`: any number of controllers side by side, each against the tables and the neighbours, paired."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...data.cache import open_cache
from ...data.policy import Policy
from ..baselines.ablations import ablations
from ..baselines.lookup import BudgetTable
from ..baselines.reward_table import RewardTable
from ..reward import RewardWeights
from .bootstrap import DEFAULT_RESAMPLES
from .evaluate import evaluate, split_samples
from .load import load_controllers
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
    measured with one reward: `weights`, else the default's, whatever each was trained with.
    """
    cache = open_cache(Path(cache_path), tokens=True)
    table = RewardTable.from_cache(cache, weights)
    split_samples(table, split)
    table.budget_rows(table.budgets_ms_M if budgets_ms is None else budgets_ms)
    warnings = list(cache.warnings)
    policies: list[Policy] = []
    described = {}
    for name, path in zip(short_names([Path(path) for path in controllers_paths]), controllers_paths, strict=True):
        loaded = load_controllers(path, cache, name=name)
        policies.append(loaded.policy)
        described[name] = loaded.describe()
        if loaded.weights is not None and loaded.weights != table.weights:
            warnings.append(
                f"{name} was trained with other reward weights ({loaded.weights.to_dict()}) than reported here"
            )
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
    report.warnings[:0] = warnings
    report.controllers = described
    return report


def short_names(paths: Sequence[Path]) -> list[str]:
    """Returns the last part of each path, with as many parts before it as tell all of them apart."""
    for length in range(1, max((len(path.parts) for path in paths), default=1) + 1):
        names = ["/".join(path.parts[-length:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{path}#{place}" for place, path in enumerate(paths)]  # the same one twice
