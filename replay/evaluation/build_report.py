"""Builds the report of policies on one split of a cache; independent of checkpoints and of the live model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...data.errors import KnobctlError
from ...data.knobs import KNOBS, KnobSpace
from ...data.protocols import Policy
from ..policies.ablations import ABLATIONS
from ..policies.decide import decide
from ..policies.lookup import BudgetTable
from ..policies.registry import BASELINES
from ..reward import RewardWeights
from ..tables import UNTIMED, ReplayTables
from .bootstrap import DEFAULT_CONFIDENCE, DEFAULT_RESAMPLES, ClusterBootstrap
from .figures import PolicyFigures, group_figures, paired_comparisons
from .report import OVERALL, Comparison, Decisions, EvaluationReport, PolicyReport
from .request_stats import STATS, RequestSet, latency_runs, request_stats
from .warnings import (
    cluster_warnings,
    few_warnings,
    held_out_warnings,
    hole_warnings,
    percentile_warnings,
    token_warnings,
    unmet_budget_warnings,
)

if TYPE_CHECKING:
    from ...data.cache.reader import Cache


def build_report(
    cache: Cache,
    policies: Sequence[Policy],
    *,
    split: str = "test",
    budgets_ms: Sequence[float] | None = None,
    weights: RewardWeights | None = None,
    tables: ReplayTables | None = None,
    subjects: Sequence[str] = (),
    resamples: int = DEFAULT_RESAMPLES,
    confidence: float = DEFAULT_CONFIDENCE,
    seed: int = 0,
) -> EvaluationReport:
    """Returns all figures of every policy, per budget and over all, per dataset and overall, with intervals.

    `budgets_ms` are budgets of the cache's grid (default: all); `subjects` names the policies that the report is
    about, which are also compared with each other. Raises KnobctlError for a split without samples or a budget that
    is not in the grid.
    """
    tables = tables or ReplayTables.from_cache(cache, weights)
    sample_N = split_samples(tables, split)
    budget_M = tables.grid_indices(budgets_ms)
    requests = RequestSet.of(tables, sample_N, budget_M, latency_runs(cache, sample_N))
    chosen = {policy.name: decide(policy, tables, sample_N, budget_M) for policy in policies}
    assert len(chosen) == len(policies), f"two policies share a name: {[policy.name for policy in policies]}"
    report = report_of_choices(
        requests,
        chosen,
        split=split,
        subjects=subjects,
        cluster_by=cluster_column(cache),
        resamples=resamples,
        confidence=confidence,
        seed=seed,
    )
    report.warnings[:0] = [
        *cluster_warnings(cache),
        *held_out_warnings(tables, split),
        *hole_warnings(tables, split),
        *(token_warnings(tables, split) if any(policy.uses_latency_token for policy in policies) else []),
    ]
    report.cache = cache_record(cache)
    return report


def report_of_choices(
    requests: RequestSet,
    chosen: Mapping[str, NDArray[np.int64]],
    *,
    split: str,
    subjects: Sequence[str],
    means: Mapping[str, Sequence[str]] | None = None,
    cluster_by: str = "image_id",
    resamples: int = DEFAULT_RESAMPLES,
    confidence: float = DEFAULT_CONFIDENCE,
    seed: int = 0,
) -> EvaluationReport:
    """Returns the same report from settings already chosen, {policy: [N, M]}.

    `means` adds policies whose figures are means over others, {name: names of the others}: those of several seeds.
    """
    tables, sample_N = requests.tables, requests.sample_N
    means = means or {}
    choices_NMK = {name: np.stack([chosen[one] for one in averaged], axis=2) for name, averaged in means.items()}
    choices_NMK |= {name: chosen_NM[:, :, None] for name, chosen_NM in chosen.items()}
    dataset_N = np.array([tables.datasets[index] for index in sample_N], dtype=object)
    names = sorted(set(dataset_N.tolist()))
    groups = {OVERALL: np.arange(len(sample_N))}
    if len(names) > 1:
        groups |= {group_name(name): np.flatnonzero(dataset_N == name) for name in names}
    figures: dict[str, dict[str, PolicyFigures]] = {}
    comparisons: list[Comparison] = []
    clusters: dict[str, int] = {}
    for group, rows in groups.items():
        bootstrap = ClusterBootstrap.draw(
            tables.cluster_S[sample_N[rows]], resamples=resamples, seed=seed, confidence=confidence
        )
        clusters[group] = bootstrap.n_clusters
        own = {name: chosen_NMK[rows] for name, chosen_NMK in choices_NMK.items()}
        figures[group] = group_figures(requests.subset(rows), own, bootstrap)
        for family in _families(list(choices_NMK), subjects):
            comparisons += paired_comparisons(family, group, figures[group], bootstrap)
    if len(names) == 1:
        figures[group_name(names[0])] = figures[OVERALL]
    reports = {
        name: PolicyReport(
            name,
            f"mean over {', '.join(means[name])}" if name in means else describe(name),
            figures[OVERALL][name].group,
            {dataset: figures[group_name(dataset)][name].group for dataset in names},
            *_histograms(tables.space, chosen_NMK),
        )
        for name, chosen_NMK in choices_NMK.items()
    }
    return EvaluationReport(
        split=split,
        n_samples=len(sample_N),
        n_clusters=clusters[OVERALL],
        cluster_by=cluster_by,
        budgets_ms=tuple(float(budget) for budget in requests.budgets_ms),
        unmet_budgets_ms=tuple(float(budget) for budget in requests.unmet_budgets_ms),
        reward_weights=tables.weights.to_dict(),
        resamples=resamples,
        confidence=confidence,
        seed=seed,
        latency_percentiles_over="latency_ms" if requests.latency_runs_ms_NXR is None else "runs",
        policies=reports,
        comparisons=comparisons,
        decisions=Decisions(
            tables, sample_N, requests.budget_M, dict(chosen), {name: tuple(means[name]) for name in means}
        ),
        subjects=tuple(subjects),
        warnings=[
            *unmet_budget_warnings(requests),
            *percentile_warnings(requests),
            *few_warnings(clusters, cluster_by),
        ],
    )


def table_and_oracle(tables: ReplayTables, split: str) -> tuple[float, float]:
    """Returns the mean rewards on a split, over all budgets, of the budget-only table and of the oracle."""
    budget_M = tables.grid_indices(None)
    requests = RequestSet.of(tables, tables.measured(split), budget_M)
    chosen_NM = decide(BudgetTable(tables), tables, requests.sample_N, budget_M)
    reward_NM = request_stats(requests, chosen_NM)[:, :, STATS.index("reward")]
    return float(reward_NM.mean()), float(requests.oracle_reward_NM.mean())


def cache_record(cache: Cache) -> dict[str, Any]:
    """Returns the report's description of the cache."""
    manifest = cache.manifest
    return {
        "path": cache.source,
        "fingerprint": cache.fingerprint,
        "model": manifest.model_name,
        "latency_mode": manifest.latency_mode,
        "device": manifest.device,
    }


def cluster_column(cache: Cache) -> str:
    """Returns the column that intervals cluster by: "image_id", or "sample_id" if no image is known."""
    frame = cache.samples
    known = "image_id" in frame.columns and frame["image_id"].null_count() < len(frame)
    return "image_id" if known else "sample_id"


def group_name(dataset: str) -> str:
    """Returns the name of a dataset's group: the dataset's name, made distinct from the group of all samples."""
    return dataset if dataset != OVERALL else f"dataset {OVERALL}"


def split_samples(tables: ReplayTables, split: str) -> NDArray[np.int64]:
    """Returns the samples of a split that have outcomes. Raises KnobctlError, naming the splits with some, if none."""
    sample_N = tables.measured(split)
    if len(sample_N):
        return sample_N
    if not np.isfinite(tables.latency_ms_SX).any():
        raise KnobctlError(UNTIMED)
    counts = {name: len(tables.measured(name)) for name in ("train", "val", "test")}
    has = ", ".join(f"{name} ({count})" for name, count in counts.items() if count) or "none in any split"
    raise KnobctlError(
        f"the cache has no sample with outcomes in split `{split}`; it has {has}. Name one of those with --split "
        "(figures on `train` are not held out), or make a cache with a held-out split"
    )


def describe(name: str) -> str:
    """Returns one line that describes a policy."""
    if name in BASELINES:
        return BASELINES[name].description
    policy, _, part = name.rpartition(":")
    if policy and part in ABLATIONS:
        knobs = ", ".join(knob.replace("_", " ") for knob in ABLATIONS[part])
        return f"{policy} sets {knobs}; the budget-only table sets the rest"
    policy, _, level = name.rpartition(" within ")
    if policy:
        return f"{policy}, restricted so that at least {float(level):.0%} of the budgets that can be met are kept"
    return "trained controllers"


def _families(names: Sequence[str], subjects: Sequence[str]) -> list[list[tuple[str, str]]]:
    """Returns the pairs to compare, in families that are judged together.

    One family for each policy, with every baseline that is a bar, and one for the subjects with each other.
    """
    bars = [name for name, baseline in BASELINES.items() if baseline.is_bar and name in names]
    families = [[(name, bar) for bar in bars if name != bar] for name in names]
    return [*families, [(one, other) for place, one in enumerate(subjects) for other in subjects[:place]]]


def _histograms(
    space: KnobSpace, setting_NMK: NDArray[np.int64]
) -> tuple[dict[str, float], dict[str, dict[str, float]], tuple[dict[str, dict[str, float]], ...]]:
    """Returns the share of requests by setting, by knob value, and by knob value for each budget."""
    counted = Counter(setting_NMK.ravel().tolist())
    settings = {
        str(space.settings[setting]): count / setting_NMK.size
        for setting, count in sorted(counted.items(), key=lambda item: (-item[1], item[0]))
    }
    per_budget = tuple(_knob_shares(space, setting_NMK[:, m].ravel()) for m in range(setting_NMK.shape[1]))
    return settings, _knob_shares(space, setting_NMK.ravel()), per_budget


def _knob_shares(space: KnobSpace, setting_B: NDArray[np.int64]) -> dict[str, dict[str, float]]:
    shares = {}
    for knob, values, index_X in zip(KNOBS, space.values, space.value_index_KX, strict=True):
        if values != (None,):
            share = np.bincount(index_X[setting_B], minlength=len(values)) / len(setting_B)
            shares[knob] = {str(value): float(one) for value, one in zip(values, share, strict=True)}
    return shares
