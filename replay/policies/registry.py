"""Baselines by name: the names that `--baseline` takes, in the order in which reports list them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ...data.errors import KnobctlError
from ...data.protocols import Policy
from .fixed import RandomPolicy, best_fixed, cheapest, full_model
from .lookup import BudgetTable, DatasetTable, Oracle
from .neighbours import LanguageNeighbours
from .regression import LanguageRegression, TokenRegression, require_sklearn
from .reward_table import RewardTable
from .token_neighbours import TokenNeighbours, no_token_at

BASELINES: dict[str, str] = {
    "full": "the model as it is: highest tier, native top-k, all blocks",
    "cheapest": "the setting with the lowest mean latency in training",
    "random": "any setting, by seed",
    "best_fixed": "the one setting that is best over all budgets in training",
    "table": "budget-only look-up table: the best setting per budget in training",
    "dataset_table": "look-up table per dataset and budget",
    "neighbours": "nearest neighbours on the language feature",
    "neighbours_token": "nearest neighbours: Stage1 on the language feature, Stage2 on the latency token",
    "mlp_language": "supervised regression on (language feature, budget)",
    "mlp_token": "supervised regression: Stage1 on the language feature, Stage2 on the latency token",
    "oracle": "each sample's best setting under each budget",
}
DEFAULT_BASELINES = ("full", "cheapest", "random", "best_fixed", "table", "dataset_table", "neighbours", "oracle")
NEEDS_FEATURE = {"neighbours", "neighbours_token", "mlp_language", "mlp_token"}
NEEDS_TOKEN = {"neighbours_token", "mlp_token"}
NEEDS_TRAINING = set(BASELINES) - {"full", "random", "oracle"}


def why_not(name: str, table: RewardTable) -> str | None:
    """Returns what the cache lacks for a baseline, in words; None when it can be had."""
    if name in NEEDS_TRAINING and not len(table.indices("train")):
        return "the cache has no sample with outcomes in split `train`"
    if name in NEEDS_FEATURE and table.language_feature_SD.shape[1] == 0:
        return "the cache has no language features (imported results have none)"
    if name in NEEDS_TOKEN and table.tables.token_STPMD is None:
        return "the cache has no latency tokens"
    return place_without_tokens(table) if name in NEEDS_TOKEN else None


def place_without_tokens(table: RewardTable) -> str | None:
    """Returns, in words, a place that training samples have outcomes for and none a latency token; None if all do."""
    present_STPM = table.tables.token_present_STPM
    assert present_STPM is not None
    train_N = table.indices("train")
    seen_X = table.available_SX[train_N].any(axis=0)
    for tier, position in np.unique(table.axes.axis_KX[:2, seen_X], axis=1).T:
        without_M = ~present_STPM[train_N, tier, position].any(axis=0)
        if without_M.any():
            return no_token_at(table, int(tier), int(position), int(without_M.argmax()))
    return None


def build_baselines(
    names: Sequence[str], table: RewardTable, *, seed: int = 0, skipped: list[str] | None = None
) -> list[Policy]:
    """Returns fitted baselines in the order of `BASELINES`.

    What the cache cannot support is an error; with a list for `skipped` it is left out, and the reason added there.
    """
    unknown = sorted(set(names) - set(BASELINES))
    if unknown:
        raise KnobctlError(f"unknown baselines {unknown}: choose from {', '.join(BASELINES)}")
    wanted = []
    for name in BASELINES:
        reason = why_not(name, table) if name in names else None
        if reason and skipped is None:
            raise KnobctlError(f"baseline `{name}` cannot be had, because {reason}: leave out --baseline {name}")
        if reason and skipped is not None:
            skipped.append(f"baseline `{name}` left out: {reason}")
        elif name in names:
            wanted.append(name)
    if {"mlp_language", "mlp_token"} & set(wanted):
        require_sklearn()
    built: dict[str, Policy] = {}

    def neighbours() -> LanguageNeighbours:
        found = built.get("neighbours")
        return found if isinstance(found, LanguageNeighbours) else LanguageNeighbours(table, seed=seed)

    def mlp_language() -> LanguageRegression:
        found = built.get("mlp_language")
        return found if isinstance(found, LanguageRegression) else LanguageRegression(table, seed=seed)

    makers: dict[str, Callable[[], Policy]] = {
        "full": lambda: full_model(table),
        "cheapest": lambda: cheapest(table),
        "random": lambda: RandomPolicy(table.axes, seed),
        "best_fixed": lambda: best_fixed(table),
        "table": lambda: BudgetTable(table),
        "dataset_table": lambda: DatasetTable(table),
        "neighbours": neighbours,
        "neighbours_token": lambda: TokenNeighbours(table, neighbours(), seed=seed),
        "mlp_language": mlp_language,
        "mlp_token": lambda: TokenRegression(table, mlp_language(), seed=seed),
        "oracle": lambda: Oracle(table),
    }
    for name in wanted:
        built[name] = makers[name]()
    return [built[name] for name in wanted]
