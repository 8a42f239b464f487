"""Figures of the report, compared with values worked out by hand for four settings."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from knobctl.data.cache.reader import open_cache
from knobctl.data.errors import CacheError, KnobctlError
from knobctl.data.knobs import KnobSpace
from knobctl.replay.evaluation.build_report import build_report
from knobctl.replay.evaluation.report import BETTER, NOT_SHOWN, EvaluationReport
from knobctl.replay.policies.registry import DEFAULT_BASELINES, build_baselines
from knobctl.replay.report.tables import render_report
from knobctl.replay.tables import ReplayTables
from knobctl.tests.support.caches import FOUR, generated_cache, write_array_cache

LATENCY_MS = [20.0, 40.0, 60.0, 130.0]
BUDGETS_MS = (30.0, 50.0, 100.0)


def report_of(path: Path, accuracy_SX: object, names: tuple[str, ...], **options: object) -> EvaluationReport:
    """Returns the report of baselines on a cache made of arrays; further options go to `build_report`."""
    asked = {name: options.pop(name) for name in ("subjects", "budgets", "split", "resamples") if name in options}
    accuracy = np.asarray(accuracy_SX, float)
    latency = options.pop("latency_ms_SX", np.tile(LATENCY_MS, (len(accuracy), 1)))
    cache = open_cache(write_array_cache(path, accuracy, latency, **{"budgets_ms": BUDGETS_MS, **options}))
    table = ReplayTables.from_cache(cache)
    return build_report(
        cache,
        build_baselines(names, table),
        tables=table,
        split=asked.get("split", "test"),
        budgets_ms=asked.get("budgets"),
        subjects=asked.get("subjects", ()),
        resamples=asked.get("resamples", 200),
    )


SPLITS = ["train", "test", "test", "test"]
ACCURACY = [[0, 1, 1, 1], [0, 0, 1, 1], [0.3, 1, 1, 1], [0, 0, 0, 1]]


def figures(report: EvaluationReport, name: str) -> dict[str, float | None]:
    return {key: estimate.value for key, estimate in report.policies[name].overall.metrics.items()}


def test_accuracy_latency_and_misses_of_a_fixed_setting(tmp_path: Path):
    report = report_of(tmp_path / "c", ACCURACY, ("full", "cheapest", "table", "oracle"), splits=SPLITS)
    full = figures(report, "full")  # high/16, 130 ms: always correct, over every budget
    assert (full["accuracy"], full["accuracy_in_time"], full["violation_rate"]) == (1.0, 0.0, 1.0)
    assert (full["latency_ms"], full["latency_p50_ms"], full["latency_p95_ms"]) == (130.0, 130.0, 130.0)
    cheapest = figures(report, "cheapest")  # low/12, 20 ms
    assert cheapest["accuracy"] == pytest.approx(0.1)
    assert (cheapest["violation_rate"], cheapest["violation_rate_of_feasible"]) == (0.0, 0.0)
    assert (report.n_samples, report.n_clusters, report.cluster_by) == (3, 3, "image_id")


def test_the_reward_follows_the_formula_and_its_terms_add_up(tmp_path: Path):
    report = report_of(tmp_path / "c", ACCURACY, ("full", "cheapest"), splits=SPLITS, budgets=(50.0,))
    over = 130 / 50 - 1
    complexity = (1 + 1 + 1) / 3
    expected = 1 - 0.5 / (1 + math.exp(-10 * over)) - 10 * over**2 - 0.05 * complexity
    assert figures(report, "full")["reward"] == pytest.approx(expected, rel=1e-5)
    saved = 1 - 20 / 50
    complexity = (2 / 12 + 1 + 12 / 16) / 3  # mean crops: 2 in low, 12 in high
    expected = 0.1 - 0.5 / (1 + math.exp(10 * saved)) + 0.1 * saved - 0.05 * complexity
    cheapest = figures(report, "cheapest")
    assert cheapest["reward"] == pytest.approx(expected, rel=1e-5)
    terms = [cheapest[f"reward_{term}"] for term in ("accuracy", "latency", "violation", "saving", "complexity")]
    assert sum(terms) == pytest.approx(cheapest["reward"])
    assert (cheapest["reward_violation"], figures(report, "full")["reward_saving"]) == (0.0, 0.0)


def test_regret_and_gap_closed_run_from_the_table_to_the_oracle(tmp_path: Path):
    report = report_of(tmp_path / "c", ACCURACY, ("cheapest", "table", "oracle"), splits=SPLITS)
    oracle, lookup, cheapest = (figures(report, name) for name in ("oracle", "table", "cheapest"))
    assert (oracle["regret"], oracle["gap_closed"], lookup["gap_closed"]) == (0.0, 1.0, 0.0)
    assert cheapest["regret"] == pytest.approx(oracle["reward"] - cheapest["reward"])
    expected = (cheapest["reward"] - lookup["reward"]) / (oracle["reward"] - lookup["reward"])
    assert cheapest["gap_closed"] == pytest.approx(expected)


def test_the_area_under_the_accuracy_budget_curve_weights_budgets_by_their_distance(tmp_path: Path):
    report = report_of(tmp_path / "c", ACCURACY, ("table",), splits=SPLITS)
    accuracy = [metrics["accuracy"].value for metrics in report.policies["table"].overall.per_budget]
    by_hand = ((accuracy[0] + accuracy[1]) / 2 * 20 + (accuracy[1] + accuracy[2]) / 2 * 50) / 70
    assert figures(report, "table")["accuracy_budget_area"] == pytest.approx(by_hand)
    assert by_hand != pytest.approx(sum(accuracy) / 3)


def test_a_budget_that_no_setting_meets_is_reported_and_excluded_from_feasible_misses(tmp_path: Path):
    report = report_of(tmp_path / "c", ACCURACY, ("cheapest",), splits=SPLITS, budgets_ms=(10.0, 30.0))
    assert report.unmet_budgets_ms == (10.0,)
    assert any("no setting of any sample meets these budgets: 10 ms" in warning for warning in report.warnings)
    found = figures(report, "cheapest")
    assert (found["violation_rate"], found["feasible"], found["violation_rate_of_feasible"]) == (0.5, 0.5, 0.0)
    assert report.policies["cheapest"].overall.per_budget[0]["violation_rate_of_feasible"].value is None


def test_percentiles_pool_all_runs(tmp_path: Path):
    runs = np.tile(np.array(LATENCY_MS)[None, :, None], (4, 1, 3)) + np.array([-1.0, 0.0, 5.0])
    report = report_of(tmp_path / "c", ACCURACY, ("cheapest",), splits=SPLITS, runs_ms_SXR=runs)
    assert report.latency_percentiles_over == "runs"
    pooled = np.tile([19.0, 20.0, 25.0], 3)
    assert figures(report, "cheapest")["latency_p95_ms"] == pytest.approx(np.quantile(pooled, 0.95))
    assert figures(report, "cheapest")["latency_ms"] == 20.0
    alone = report_of(tmp_path / "d", ACCURACY, ("cheapest",), splits=SPLITS)
    assert alone.latency_percentiles_over == "latency_ms"
    assert any("pool one latency_ms per sample, not runs" in warning for warning in alone.warnings)


def test_intervals_cluster_by_image_with_a_warning_if_images_are_unknown(tmp_path: Path):
    many = np.repeat(ACCURACY[1:], 4, axis=0).tolist()
    options = {"splits": ["train"] + ["test"] * 12, "names": ("cheapest", "full")}
    names = options.pop("names")
    images = ["a"] + [f"image {index // 4}" for index in range(12)]
    shared = report_of(tmp_path / "c", [ACCURACY[0], *many], names, image_ids=images, **options)
    own = report_of(tmp_path / "d", [ACCURACY[0], *many], names, image_ids=[None] * 13, **options)
    assert (shared.n_clusters, own.n_clusters, own.cluster_by) == (3, 12, "sample_id")
    wide, narrow = (r.policies["cheapest"].overall.metrics["accuracy"] for r in (shared, own))
    assert wide.high - wide.low > narrow.high - narrow.low
    assert any("no image_id: intervals cluster by sample" in warning for warning in own.warnings)
    assert not any("image_id" in warning for warning in shared.warnings)


def test_a_policy_is_called_better_only_if_the_corrected_test_says_so(tmp_path: Path):
    rng = np.random.default_rng(0)
    accuracy = np.zeros((120, 4))
    accuracy[:, 1:] = (rng.random(120) < 0.5)[:, None]
    splits = ["train"] * 40 + ["test"] * 80
    names = ("cheapest", "table", "dataset_table", "oracle")
    report = report_of(tmp_path / "c", accuracy, names, splits=splits, subjects=("oracle",), budgets=(50.0,))
    won = report.compared("oracle", "table")
    assert won.verdict == BETTER
    assert won.differences["reward"].low > 0
    assert won.adjusted_p_value == pytest.approx(2 * 2 / 201)  # 200 resamples; Holm: twice the smallest p
    # With one dataset, both tables are equal, and no difference may be reported.
    tied = report.compared("dataset_table", "table")
    assert (tied.verdict, tied.differences["reward"].value) == (NOT_SHOWN, 0.0)
    assert report.compared("oracle", "full") is None
    text = rendered(report)
    assert "oracle is better than budget-only table: reward +" in text


def test_the_report_states_when_no_difference_is_shown(tmp_path: Path):
    report = report_of(tmp_path / "c", ACCURACY, ("table", "dataset_table"), splits=SPLITS, subjects=("dataset_table",))
    assert "dataset_table is NOT shown to differ from budget-only table" in rendered(report)


def rendered(report: EvaluationReport | dict) -> str:
    console = Console(width=200, file=io.StringIO())
    console.print(render_report(report))
    return console.file.getvalue()


def test_figures_are_given_per_dataset_and_add_up(tmp_path: Path):
    datasets = ["a", "a", "b", "b"]
    report = report_of(tmp_path / "c", ACCURACY, ("cheapest", "table"), splits=SPLITS, datasets=datasets)
    groups = report.policies["cheapest"].datasets
    assert {name: group.n_samples for name, group in groups.items()} == {"a": 1, "b": 2}
    mean = (groups["a"].metrics["accuracy"].value + 2 * groups["b"].metrics["accuracy"].value) / 3
    assert mean == pytest.approx(figures(report, "cheapest")["accuracy"])
    assert report.compared("cheapest", "table", "b") is not None


def test_the_histograms_count_the_choices(tmp_path: Path):
    report = report_of(tmp_path / "c", ACCURACY, ("cheapest", "oracle"), splits=SPLITS)
    assert report.policies["cheapest"].settings == {"low/p1/k8/n12": 1.0}
    assert report.policies["cheapest"].knobs["tier"] == {"low": 1.0, "high": 0.0}
    oracle = report.policies["oracle"]
    assert sum(oracle.settings.values()) == pytest.approx(1.0)
    assert len(oracle.knobs_per_budget) == 3
    assert oracle.knobs_per_budget[0]["tier"]["low"] == 1.0  # 30 ms: the overrun of the high tier costs too much


def test_the_report_is_json_and_reproducible(tmp_path: Path):
    cache = generated_cache(tmp_path / "c", holes=0.1)
    table = ReplayTables.from_cache(cache)

    def run(seed: int) -> str:
        policies = build_baselines(DEFAULT_BASELINES, table)
        return build_report(cache, policies, tables=table, subjects=("neighbours",), resamples=50, seed=seed).to_json()

    first = run(0)
    assert run(0) == first
    assert run(1) != first
    record = json.loads(first)
    assert set(record["policies"]) == set(DEFAULT_BASELINES)
    assert any("lack some outcomes" in warning for warning in record["warnings"])
    text = rendered(record)
    for name in (*DEFAULT_BASELINES, "Budget by budget", "all budgets", "most often"):
        assert name in text


def test_requests_that_cannot_be_evaluated_raise_a_clear_error(tmp_path: Path):
    with pytest.raises(KnobctlError, match=r"no sample with outcomes in split `test`; it has train \(4\)"):
        report_of(tmp_path / "a", ACCURACY, ("full",))
    with pytest.raises(
        KnobctlError, match=r"budgets \[42.0\] ms are not in the cache's grid.*\[30.0, 50.0, 100.0\] ms"
    ):
        report_of(tmp_path / "b", ACCURACY, ("full",), splits=SPLITS, budgets=(42.0,))
    cache = generated_cache(tmp_path / "c")
    table = ReplayTables.from_cache(cache)
    table = replace(table, token_STPMD=None)
    neighbours = build_baselines(["table"], table)[0]
    neighbours.uses_latency_token = True
    with pytest.raises(CacheError, match="`table` reads latency tokens, and the cache has none"):
        build_report(cache, [neighbours], tables=table)


def test_imported_results_without_positions_or_features_can_be_evaluated(tmp_path: Path):
    space = KnobSpace(("low", "high"), (None,), (8,), (12, 16))
    nan = float("nan")
    accuracy = [[0, 1, 1, 1], [0, 0, nan, 1], [0.3, 1, 1, 1], [nan, nan, nan, nan]]
    path = write_array_cache(
        tmp_path / "c",
        np.array(accuracy),
        np.tile(LATENCY_MS, (4, 1)),
        space=space,
        splits=SPLITS,
        budgets_ms=BUDGETS_MS,
        feature_SD=np.zeros((4, 0)),
        latency_mode="imported",
    )
    cache = open_cache(path)
    table = ReplayTables.from_cache(cache)
    skipped: list[str] = []
    policies = build_baselines(DEFAULT_BASELINES, table, skipped=skipped)
    report = build_report(cache, policies, tables=table)
    assert skipped == [
        "baseline `neighbours` left out: the cache has no language features (imported results have none)"
    ]
    assert report.n_samples == 2
    assert any("1 of 3 samples of split `test` have no outcome at all" in warning for warning in report.warnings)
    assert "insertion_position" not in report.policies["table"].knobs
    assert "low/p-/k8/n12" in report.policies["cheapest"].settings


def test_ten_samples_one_budget_and_no_val_work(tmp_path: Path):
    rng = np.random.default_rng(0)
    accuracy = rng.integers(0, 2, (10, 4))
    splits = ["train"] * 6 + ["test"] * 4
    features = rng.standard_normal((10, 4))
    names = (*DEFAULT_BASELINES, "mlp_language")
    report = report_of(tmp_path / "c", accuracy, names, splits=splits, budgets_ms=(50.0,), feature_SD=features)
    assert report.n_samples == 4
    assert any("only 4 images" in warning for warning in report.warnings)
    assert len(FOUR.settings) == 4
    rendered(report)


def test_runs_have_equal_weight_if_samples_have_different_numbers_of_them(tmp_path: Path):
    """Half of the samples are fast and have twenty runs; half are slow and have two."""
    count = 60
    fast_N = np.arange(count) % 2 == 0
    latency = np.where(fast_N[:, None], 20.0, 45.0) * np.ones(4)
    noise = np.random.default_rng(0).normal(1, 0.01, (count, 4, 20))
    runs = latency[:, :, None] * noise
    runs[~fast_N, :, 2:] = np.nan
    report = report_of(
        tmp_path / "c",
        np.ones((count, 4)),
        ("cheapest",),
        splits=["train"] * 2 + ["test"] * (count - 2),
        latency_ms_SX=latency,
        runs_ms_SXR=runs,
    )
    for name in ("latency_p50_ms", "latency_p95_ms"):
        found = report.policies["cheapest"].overall.metrics[name]
        assert found.low <= found.value <= found.high, name


def test_a_dataset_named_overall_is_distinct_from_the_overall_group(tmp_path: Path):
    datasets = ["overall", "overall", "other", "other"]
    report = report_of(tmp_path / "c", ACCURACY, ("full",), splits=["train", *["test"] * 3], datasets=datasets)
    policy = report.policies["full"]
    assert policy.overall.n_samples == 3
    assert {name: group.n_samples for name, group in policy.datasets.items()} == {"overall": 1, "other": 2}


def test_dataset_names_are_not_markup(tmp_path: Path):
    datasets = ["vqa[v2]", "vqa[/x]", "vqa[v2]", "vqa[/x]"]
    report = report_of(tmp_path / "c", ACCURACY, ("full",), splits=["train", *["test"] * 3], datasets=datasets)
    shown = io.StringIO()
    Console(file=shown, width=140).print(render_report(report.to_dict()))
    assert "vqa[v2] (1)" in shown.getvalue()
    assert "vqa[/x] (2)" in shown.getvalue()


def test_a_warning_states_which_figures_are_not_held_out(tmp_path: Path):
    images = ["a", "a", "b", "c"]
    shared = report_of(tmp_path / "c", ACCURACY, ("full",), splits=SPLITS, image_ids=images)
    assert any(w.startswith("1 samples of split `test` show images that `train`") for w in shared.warnings)
    train = report_of(tmp_path / "d", ACCURACY, ("full",), splits=SPLITS, split="train")
    assert any("`train` are not held out" in warning for warning in train.warnings)
    plain = report_of(tmp_path / "e", ACCURACY, ("full",), splits=SPLITS)
    assert not any("held out" in warning for warning in plain.warnings)


def test_budgets_listed_in_an_error_are_accepted(tmp_path: Path):
    with pytest.raises(KnobctlError, match=r"choose from \[23\.456789, 41\.0\] ms"):
        report_of(tmp_path / "c", ACCURACY, ("full",), splits=SPLITS, budgets_ms=(23.456789, 41.0), budgets=[23.457])
    asked = {"splits": SPLITS, "budgets_ms": (23.456789, 41.0), "budgets": [23.456789]}
    assert len(report_of(tmp_path / "d", ACCURACY, ("full",), **asked).budgets_ms) == 1
