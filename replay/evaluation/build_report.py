"""Measures policies side by side on one split of a cache. Knows nothing of controllers' files or of the live model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...data.errors import KnobctlError
from ...data.protocols import Policy
from ..policies.ablations import ABLATIONS
from ..policies.axes import KNOBS, SettingAxes
from ..policies.decide import decide
from ..policies.lookup import BudgetTable
from ..policies.registry import BASELINES
from ..policies.reward_table import UNTIMED, RewardTable
from ..reward import RewardWeights
from .bootstrap import DEFAULT_CONFIDENCE, DEFAULT_RESAMPLES, ClusterBootstrap
from .measure import Measured, compare_pair, measure_group
from .report import Comparison, Decisions, EvaluationReport, PolicyReport
from .stats import STATS, Problem, latency_runs, request_stats

if TYPE_CHECKING:
    from ...data.cache.reader import Cache

BARS = (
    "table",
    "dataset_table",
    "neighbours",
    "neighbours_token",
)  # what a learned policy must beat
FEW_CLUSTERS = 20
OVERALL = "overall"


def evaluate(
    cache: Cache,
    policies: Sequence[Policy],
    *,
    split: str = "test",
    budgets_ms: Sequence[float] | None = None,
    weights: RewardWeights | None = None,
    table: RewardTable | None = None,
    subjects: Sequence[str] = (),
    resamples: int = DEFAULT_RESAMPLES,
    confidence: float = DEFAULT_CONFIDENCE,
    seed: int = 0,
) -> EvaluationReport:
    """Returns every figure of every policy, per budget and over all, per dataset and overall, with intervals.

    `budgets_ms` are budgets of the cache's grid (all by default); `subjects` names the policies that the report is
    about, which are also compared with each other. Raises KnobctlError for a split without samples or a budget that
    is not in the grid.
    """
    table = table or RewardTable.from_cache(cache, weights)
    sample_N = split_samples(table, split)
    budget_M = tuple(sorted(set(table.budget_rows(budgets_ms or table.budgets_ms_M).tolist())))
    problem = Problem.of(table, sample_N, budget_M, latency_runs(cache, sample_N))
    chosen = {policy.name: decide(policy, table, sample_N, budget_M) for policy in policies}
    assert len(chosen) == len(policies), f"two policies share a name: {[policy.name for policy in policies]}"
    cluster_by, cluster_warnings = clustering(cache)
    report = measure(
        problem,
        chosen,
        split=split,
        subjects=subjects,
        cluster_by=cluster_by,
        resamples=resamples,
        confidence=confidence,
        seed=seed,
    )
    report.warnings[:0] = [
        *cluster_warnings,
        *held_out_warnings(table, split),
        *hole_warnings(table, split),
        *(token_warnings(table, split) if any(policy.uses_latency_token for policy in policies) else []),
    ]
    report.cache = cache_record(cache)
    return report


def table_and_oracle(table: RewardTable, split: str) -> tuple[float, float]:
    """Returns the mean rewards on a split, over all budgets, of the budget-only table and of the oracle."""
    budget_M = tuple(range(len(table.budgets_ms_M)))
    problem = Problem.of(table, table.indices(split), budget_M)
    chosen_NM = decide(BudgetTable(table), table, problem.sample_N, budget_M)
    reward_NM = request_stats(problem, chosen_NM)[:, :, STATS.index("reward")]
    return float(reward_NM.mean()), float(problem.oracle_reward_NM.mean())


def cache_record(cache: Cache) -> dict[str, Any]:
    """What a report says of the cache that it is about."""
    manifest = cache.manifest
    return {
        "path": str(cache.path),
        "fingerprint": cache.fingerprint,
        "model": manifest.model_name,
        "latency_mode": manifest.latency_mode,
        "device": manifest.device,
    }


def measure(
    problem: Problem,
    chosen: Mapping[str, NDArray[np.int64]],
    *,
    split: str,
    subjects: Sequence[str],
    cluster_by: str = "image_id",
    resamples: int = DEFAULT_RESAMPLES,
    confidence: float = DEFAULT_CONFIDENCE,
    seed: int = 0,
) -> EvaluationReport:
    """The same from settings already chosen, {policy: [N, M]}."""
    table, sample_N = problem.table, problem.sample_N
    dataset_N = np.array([table.datasets[index] for index in sample_N], dtype=object)
    names = sorted(set(dataset_N.tolist()))
    groups = {OVERALL: np.arange(len(sample_N))}
    if len(names) > 1:
        groups |= {label(name): np.flatnonzero(dataset_N == name) for name in names}
    measured: dict[str, dict[str, Measured]] = {}
    comparisons: list[Comparison] = []
    clusters: dict[str, int] = {}
    for group, rows in groups.items():
        bootstrap = ClusterBootstrap.draw(
            table.tables.cluster_S[sample_N[rows]], resamples=resamples, seed=seed, confidence=confidence
        )
        clusters[group] = bootstrap.n_clusters
        part = _part(problem, rows)
        measured[group] = measure_group(part, {name: chosen_NM[rows] for name, chosen_NM in chosen.items()}, bootstrap)
        comparisons += [
            compare_pair(policy, other, group, measured[group], bootstrap)
            for policy, other in _pairs(list(chosen), subjects)
        ]
    if len(names) == 1:
        measured[label(names[0])] = measured[OVERALL]
    reports = {
        name: PolicyReport(
            name,
            describe(name),
            measured[OVERALL][name].group,
            {dataset: measured[label(dataset)][name].group for dataset in names},
            *_histograms(table.axes, chosen_NM),
        )
        for name, chosen_NM in chosen.items()
    }
    unmet_M = np.asarray(~problem.feasible_NM.any(axis=0))
    return EvaluationReport(
        split=split,
        n_samples=len(sample_N),
        n_clusters=clusters[OVERALL],
        cluster_by=cluster_by,
        budgets_ms=tuple(float(budget) for budget in problem.budgets_ms),
        unmet_budgets_ms=tuple(float(budget) for budget in problem.budgets_ms[unmet_M]),
        reward_weights=table.weights.to_dict(),
        resamples=resamples,
        confidence=confidence,
        seed=seed,
        latency_percentiles_over="latency_ms" if problem.latency_runs_ms_NXR is None else "runs",
        policies=reports,
        comparisons=comparisons,
        decisions=Decisions(table, sample_N, problem.budget_M, dict(chosen)),
        subjects=tuple(subjects),
        warnings=[*_warnings(problem, unmet_M), *few_warnings(clusters, cluster_by)],
    )


def label(dataset: str) -> str:
    """Returns what a dataset's group is called: its name, unless all samples together are called so."""
    return dataset if dataset != OVERALL else f"dataset {OVERALL}"


def split_samples(table: RewardTable, split: str) -> NDArray[np.int64]:
    """Returns the samples of a split that have outcomes; none is an error that says which splits have some."""
    sample_N = table.indices(split)
    if len(sample_N):
        return sample_N
    if not np.isfinite(table.latency_ms_SX).any():
        raise KnobctlError(UNTIMED)
    counts = {name: len(table.indices(name)) for name in ("train", "val", "test")}
    has = ", ".join(f"{name} ({count})" for name, count in counts.items() if count) or "none in any split"
    raise KnobctlError(
        f"the cache has no sample with outcomes in split `{split}`; it has {has}. Name one of those with --split "
        "(figures on `train` are not held out), or make a cache with a held-out split"
    )


def describe(name: str) -> str:
    """One line on what a policy is."""
    if name in BASELINES:
        return BASELINES[name]
    policy, _, part = name.rpartition(":")
    if policy and part in ABLATIONS:
        knobs = ", ".join(knob.replace("_", " ") for knob in ABLATIONS[part])
        return f"{policy} sets {knobs}; the budget-only table sets the rest"
    if name.endswith("+guard"):
        return f"{name.removesuffix('+guard')}, with choices that should miss the budget replaced"
    return "trained controllers"


def clustering(cache: Cache) -> tuple[str, list[str]]:
    """Returns what intervals cluster by, and a warning where it is not the image."""
    frame = cache.samples
    if "image_id" not in frame.columns or frame["image_id"].null_count() == len(frame):
        return "sample_id", [
            "the cache has no image_id: intervals cluster by sample, and are too narrow where samples share images"
        ]
    unknown = frame["image_id"].null_count()
    if unknown:
        return "image_id", [f"{unknown} samples have no image_id: each counts as an image of its own"]
    return "image_id", []


def hole_warnings(table: RewardTable, split: str) -> list[str]:
    """Says how many outcomes are missing, and how many samples were left out for having none."""
    rows = np.asarray(table.tables.indices(split), dtype=np.int64)
    available_NX = table.available_SX[rows]
    without = int((~available_NX.any(axis=1)).sum())
    holed = int((~available_NX.all(axis=1)).sum()) - without
    said = []
    if without:
        said.append(f"{without} of {len(rows)} samples of split `{split}` have no outcome at all and are left out")
    if holed:
        share = float((~available_NX[available_NX.any(axis=1)]).mean())
        said.append(
            f"{holed} samples of split `{split}` lack some outcomes ({share:.1%} of settings): no policy may choose "
            "these, so figures are of what is on record"
        )
    return said


def held_out_warnings(table: RewardTable, split: str) -> list[str]:
    """Says where figures are of what policies were fitted or chosen on."""
    if split != "test":
        return [f"figures on `{split}` are not held out: policies were fitted or chosen on it"]
    clusters_S = table.tables.cluster_S
    seen = np.concatenate([table.tables.indices("train"), table.tables.indices("val")])
    shared = np.isin(clusters_S[table.tables.indices(split)], clusters_S[seen])
    if not shared.any():
        return []
    return [f"{int(shared.sum())} samples of split `{split}` show images that `train` or `val` has too: not held out"]


def token_warnings(table: RewardTable, split: str) -> list[str]:
    """Says how many latency tokens are missing: policies that read them cannot choose what lies behind one."""
    present_STPM = table.tables.token_present_STPM
    if present_STPM is None:
        return []
    missing = float(1.0 - present_STPM[table.tables.indices(split)].mean())
    if not missing:
        return []
    return [
        f"{missing:.1%} of the latency tokens of split `{split}` are missing: policies that read them (the controllers "
        "among them) choose among fewer settings than the others"
    ]


def _part(problem: Problem, rows: NDArray[np.int64]) -> Problem:
    runs = problem.latency_runs_ms_NXR
    return Problem(
        problem.table,
        problem.sample_N[rows],
        problem.budget_M,
        problem.oracle_reward_NM[rows],
        problem.feasible_NM[rows],
        None if runs is None else runs[rows],
    )


def _pairs(names: Sequence[str], subjects: Sequence[str]) -> list[tuple[str, str]]:
    """Every policy against each bar, and the subjects against each other, a guard against its plain policy first."""
    bars = [bar for bar in BARS if bar in names]
    pairs = [(name, bar) for name in names for bar in bars if name != bar]
    pairs += [(one, other) for place, one in enumerate(subjects) for other in subjects[:place]]
    return pairs


def _histograms(
    axes: SettingAxes, setting_NM: NDArray[np.int64]
) -> tuple[dict[str, float], dict[str, dict[str, float]], tuple[dict[str, dict[str, float]], ...]]:
    counted = Counter(setting_NM.ravel().tolist())
    settings = {
        str(axes.space.settings[setting]): count / setting_NM.size
        for setting, count in sorted(counted.items(), key=lambda item: (-item[1], item[0]))
    }
    per_budget = tuple(_knob_shares(axes, setting_NM[:, m]) for m in range(setting_NM.shape[1]))
    return settings, _knob_shares(axes, setting_NM.ravel()), per_budget


def _knob_shares(axes: SettingAxes, setting_B: NDArray[np.int64]) -> dict[str, dict[str, float]]:
    space = axes.space
    values = (space.tiers, space.insertion_positions, space.top_k, space.num_blocks)
    return {
        knob: {
            str(value): float(share)
            for value, share in zip(
                values[place],
                np.bincount(axes.axis_KX[place, setting_B], minlength=len(values[place])) / len(setting_B),
                strict=True,
            )
        }
        for place, knob in enumerate(KNOBS)
        if values[place] != (None,)
    }


def _warnings(problem: Problem, unmet_M: NDArray[np.bool_]) -> list[str]:
    said = []
    if unmet_M.any():
        named = ", ".join(f"{budget:g}" for budget in problem.budgets_ms[unmet_M])
        said.append(f"no setting of any sample meets these budgets: {named} ms. Every policy is over budget there")
    if problem.latency_runs_ms_NXR is None:
        said.append("the cache keeps no latency_runs_ms: latency percentiles pool one latency_ms per sample, not runs")
    return said


def few_warnings(clusters: Mapping[str, int], cluster_by: str) -> list[str]:
    """Says which groups {name: images} have too few for their intervals; all together first, and alone if so."""
    unit = "image" if cluster_by == "image_id" else "sample"
    few = {group: count for group, count in clusters.items() if count < FEW_CLUSTERS}
    if OVERALL in few:
        few = {OVERALL: few[OVERALL]}
    said = []
    for group, count in few.items():
        of = "" if group == OVERALL else f" of {group}"
        if count < 2:
            said.append(f"a single {unit}{of}: no interval can be given")
        else:
            said.append(f"only {count} {unit}s{of}: bootstrap intervals from so few are too narrow")
    return said
