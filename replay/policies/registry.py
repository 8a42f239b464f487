"""The baselines, by the names that `--baseline` takes and in the order in which reports list them.

To add one, write its policy and add an entry to `BASELINES` (and a row to docs/reference/report.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from ...data.errors import KnobctlError
from ...data.protocols import Policy
from ..tables import ReplayTables
from .fixed import RandomPolicy, best_fixed, cheapest, full_model
from .lookup import BudgetTable, DatasetTable, Oracle
from .neighbours import LanguageNeighbours
from .regression import LanguageRegression, TokenRegression, require_sklearn
from .token_neighbours import TokenNeighbours, no_token_at

# A requirement returns what the cache lacks, None if it is met. It raises for a problem of any cache.
Requirement = Callable[[ReplayTables], str | None]


class Fitting:
    """What baselines are fitted on, and the policies that several of them use, each fitted once."""

    def __init__(self, tables: ReplayTables, seed: int) -> None:
        self.tables = tables
        self.seed = seed

    @cached_property
    def neighbours(self) -> LanguageNeighbours:
        return LanguageNeighbours(self.tables, seed=self.seed)

    @cached_property
    def regression(self) -> LanguageRegression:
        return LanguageRegression(self.tables, seed=self.seed)


class Baseline(NamedTuple):
    """A baseline that reports can show. Its policy has the same name."""

    name: str
    label: str  # in sentences
    description: str
    fit: Callable[[Fitting], Policy]
    needs: tuple[Requirement, ...] = ()
    is_bar: bool = False  # a learned policy is compared with it and must beat it
    is_default: bool = True  # reported unless baselines are named


def training_samples(tables: ReplayTables) -> str | None:
    return None if len(tables.measured("train")) else "the cache has no sample with outcomes in split `train`"


def language_features(tables: ReplayTables) -> str | None:
    return None if tables.d_model else "the cache has no language features (imported results have none)"


def latency_tokens(tables: ReplayTables) -> str | None:
    """Requires a latency token at every tier, position and budget that training samples have outcomes for."""
    if tables.token_STPMD is None or tables.token_present_STPM is None:
        return "the cache has no latency tokens"
    train_N = tables.measured("train")
    seen_X = tables.available_SX[train_N].any(axis=0)
    for tier, position in np.unique(tables.space.value_index_KX[:2, seen_X], axis=1).T:
        without_M = ~tables.token_present_STPM[train_N, tier, position].any(axis=0)
        if without_M.any():
            return no_token_at(tables, int(tier), int(position), int(without_M.argmax()))
    return None


def scikit_learn(tables: ReplayTables) -> str | None:
    del tables
    require_sklearn()
    return None


_ENTRIES = (
    Baseline(
        "full",
        "full model",
        "the unmodified model: highest tier, native top-k, all blocks",
        lambda fitting: full_model(fitting.tables),
    ),
    Baseline(
        "cheapest",
        "cheapest setting",
        "the setting with the lowest mean latency in training",
        lambda fitting: cheapest(fitting.tables),
        needs=(training_samples,),
    ),
    Baseline(
        "random",
        "random choice",
        "any setting, by seed",
        lambda fitting: RandomPolicy(fitting.tables.space, fitting.seed),
    ),
    Baseline(
        "best_fixed",
        "best fixed setting",
        "the one setting that is best over all budgets in training",
        lambda fitting: best_fixed(fitting.tables),
        needs=(training_samples,),
    ),
    Baseline(
        "table",
        "budget-only table",
        "budget-only look-up table: the best setting per budget in training",
        lambda fitting: BudgetTable(fitting.tables),
        needs=(training_samples,),
        is_bar=True,
    ),
    Baseline(
        "dataset_table",
        "per-dataset table",
        "look-up table per dataset and budget",
        lambda fitting: DatasetTable(fitting.tables),
        needs=(training_samples,),
        is_bar=True,
    ),
    Baseline(
        "neighbours",
        "nearest neighbours",
        "nearest neighbours on the language feature",
        lambda fitting: fitting.neighbours,
        needs=(training_samples, language_features),
        is_bar=True,
    ),
    Baseline(
        "neighbours_token",
        "nearest neighbours on the latency token",
        "nearest neighbours: Stage1 on the language feature, Stage2 on the latency token",
        lambda fitting: TokenNeighbours(fitting.tables, fitting.neighbours, seed=fitting.seed),
        needs=(training_samples, language_features, latency_tokens),
        is_bar=True,
        is_default=False,
    ),
    Baseline(
        "mlp_language",
        "regression on the language feature",
        "supervised regression on (language feature, budget)",
        lambda fitting: fitting.regression,
        needs=(training_samples, language_features, scikit_learn),
        is_default=False,
    ),
    Baseline(
        "mlp_token",
        "regression on the latency token",
        "supervised regression: Stage1 on the language feature, Stage2 on the latency token",
        lambda fitting: TokenRegression(fitting.tables, fitting.regression, seed=fitting.seed),
        needs=(training_samples, language_features, latency_tokens, scikit_learn),
        is_default=False,
    ),
    Baseline(
        "oracle",
        "oracle",
        "each sample's best setting under each budget",
        lambda fitting: Oracle(fitting.tables),
    ),
)
BASELINES = {baseline.name: baseline for baseline in _ENTRIES}
DEFAULT_BASELINES = tuple(baseline.name for baseline in _ENTRIES if baseline.is_default)


def build_baselines(
    names: Sequence[str], tables: ReplayTables, *, seed: int = 0, skipped: list[str] | None = None
) -> list[Policy]:
    """Returns fitted baselines in the order of `BASELINES`.

    Raises KnobctlError for an unknown name, and for a baseline that the cache does not support. With a list for
    `skipped`, the latter is left out, and the reason is appended to the list.
    """
    unknown = sorted(set(names) - set(BASELINES))
    if unknown:
        raise KnobctlError(f"unknown baselines {unknown}: choose from {', '.join(BASELINES)}")
    wanted = []
    for baseline in BASELINES.values():
        if baseline.name not in names:
            continue
        reason = next((lack for need in baseline.needs if (lack := need(tables))), None)
        if reason is None:
            wanted.append(baseline)
        elif skipped is None:
            raise KnobctlError(
                f"baseline `{baseline.name}` is not possible, because {reason}: leave out --baseline {baseline.name}"
            )
        else:
            skipped.append(f"baseline `{baseline.name}` left out: {reason}")
    fitting = Fitting(tables, seed)
    return [baseline.fit(fitting) for baseline in wanted]
