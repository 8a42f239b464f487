"""The numbers that figures show, worked out by hand, and the reasons why a figure is left out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from knobctl.data.errors import CacheMismatch, CheckpointError, KnobctlError
from knobctl.data.knobs import KnobSetting
from knobctl.data.plans import ImportanceScores
from knobctl.replay.report.figures import budgets, measurements, policies, settings, training
from knobctl.replay.report.figures.source import Absent, ReportSource
from knobctl.replay.report.gallery import GALLERY, make_figures
from knobctl.replay.report.live_runs import LiveRun, LiveTiming, read_live_report
from knobctl.replay.report.training_logs import Evaluation, TrainingLog, read_training_log
from knobctl.tests.support.report_sources import CHOICES, hand_made_source


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ReportSource:
    return hand_made_source(tmp_path_factory.mktemp("hand") / "cache")


def with_manifest(source: ReportSource, **changes: Any) -> ReportSource:
    return replace(source, cache=replace(source.cache, manifest=replace(source.cache.manifest, **changes)))


def test_the_frontier_has_a_point_per_budget_and_one_for_each_policy_of_one_setting(source: ReportSource):
    record = budgets.frontier(source)
    assert list(record.curves) == ["mine", "table", "oracle"]
    mine = record.curves["mine"]
    assert [point.budget_ms for point in mine] == [20, 40]
    assert [point.latency_ms.value for point in mine] == [15, 40]  # (10 + 20 + 20 + 10) / 4
    assert [point.accuracy.value for point in mine] == [0.5, 1.0]  # right, right, wrong, wrong
    assert record.fixed["full"].latency_ms.value == 40
    assert [tuple(point) for point in record.settings] == [(10, 0.25), (20, 0.5), (30, 0.25), (40, 1.0)]


def test_reward_is_that_of_the_report(source: ReportSource):
    record = budgets.reward_by_budget(source)
    report = source.report.policies["mine"].overall
    assert record.curves["mine"] == tuple(metrics["reward"] for metrics in report.per_budget)
    assert record.weights["gamma"] == 10.0


def test_latency_counts_the_requests_over_budget(source: ReportSource):
    record = budgets.latency_by_budget(source)
    assert [one.value for one in record.policies["full"].over_budget] == [1.0, 0.0]  # 40 ms is not over 40 ms
    assert [one.value for one in record.policies["mine"].mean_ms] == [15, 40]


def test_differences_are_ranked_and_name_the_verdict(source: ReportSource):
    record = policies.differences(source)
    assert isinstance(record, policies.Differences)
    assert [(row.policy, row.versus) for row in record.rows] == [("mine", "table")]
    (row,) = record.rows
    assert row.reward == source.report.compared("mine", "table").differences["reward"]  # type: ignore[union-attr]
    assert row.words == "not shown to differ from the budget-only table"


def test_the_gap_closed_has_a_row_for_all_questions_and_each_dataset(source: ReportSource):
    record = policies.gap_closed(source)
    assert isinstance(record, policies.GapClosed)
    assert [(row.name, row.n_samples) for row in record.rows] == [("all questions", 4), ("easy", 2), ("hard", 2)]
    reward = {
        name: found.overall.metrics["reward"].value for name, found in source.report.policies.items() if name != "full"
    }
    expected = (reward["mine"] - reward["table"]) / (reward["oracle"] - reward["table"])  # type: ignore[operator]
    assert record.rows[0].closed["mine"].value == pytest.approx(expected)


def test_knob_shares_of_each_budget_sum_to_one(source: ReportSource):
    record = policies.knob_shares(source)
    assert isinstance(record, policies.KnobShares)
    assert record.policy == "mine"
    assert record.knobs == {  # insertion position and top-k have one value
        "tier": {"low": (1.0, 0.0), "high": (0.0, 1.0)},
        "num_blocks": {"12": (0.5, 0.0), "16": (0.5, 1.0)},
    }


def test_without_controllers_the_oracle_is_shown(tmp_path: Path):
    found = hand_made_source(tmp_path / "cache", subjects=(), choices={n: c for n, c in CHOICES.items() if n != "mine"})
    record = policies.knob_shares(found)
    assert isinstance(record, policies.KnobShares)
    assert record.policy == "oracle"
    assert policies.differences(found) == Absent("no controllers were given that could be compared")


def test_heat_maps_are_by_tier_top_k_and_blocks(source: ReportSource):
    record = settings.heat_maps(source)
    assert isinstance(record, settings.HeatMaps)
    assert (record.tiers, record.top_k, record.num_blocks) == (("low", "high"), (8,), (12, 16))
    assert record.accuracy == (((0.25, 0.5),), ((0.25, 1.0),))
    assert record.latency_ms == (((10, 20),), ((30, 40),))


def test_importance_keeps_blocks_without_a_score(source: ReportSource):
    scores = ImportanceScores((None, *[0.1] * 14, None), (None, *[0.01] * 14, None), 5, "measured somewhere")
    record = measurements.importance(with_manifest(source, importance=scores))
    assert isinstance(record, measurements.Importance)
    assert record.scores[:2] == (None, 0.1)
    assert "standard deviation over 5 runs. Not scored and always kept: block 0, 15." in record.caption
    assert isinstance(measurements.importance(source), Absent)


CHECK = {"median_absolute_error": 0.01, "p95_absolute_error": 0.03, "error_of_mean": -0.002}


def test_blockwise_errors_come_from_the_manifest(source: ReportSource):
    check = {"settings": 12, "against": "end_to_end", "stages": {"total": CHECK}}
    record = measurements.blockwise_error(with_manifest(source, latency_check=check))
    assert isinstance(record, measurements.BlockwiseError)
    assert record.stages == (measurements.StageError("total", -0.002, 0.01, 0.03),)
    assert "n = 12 settings" in record.caption


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, "records no check"),
        ({"latency_mode": "imported"}, "were imported"),
        ({"latency_check": {"settings": 3, "stages": {"total": {**CHECK, "error_of_mean": "much"}}}}, "lacks numbers"),
        ({"latency_check": {"stages": []}}, "no stages"),
    ],
)
def test_blockwise_errors_are_left_out_with_the_reason(source: ReportSource, changes: dict[str, Any], reason: str):
    record = measurements.blockwise_error(with_manifest(source, **changes))
    assert isinstance(record, Absent)
    assert reason in record.reason


def test_live_latencies_are_paired_with_those_of_the_cache(source: ReportSource):
    timings = (
        LiveTiming("s000", KnobSetting("low", 1, 8, 12), 11.0),
        LiveTiming("s001", KnobSetting("high", 1, 8, 16), 44.0),
        LiveTiming("s001", KnobSetting("high", 1, 8, 9), 7.0),  # not in the cache
        LiveTiming("unknown", KnobSetting("low", 1, 8, 12), 11.0),
    )
    record = measurements.live_latency(replace(source, live=LiveRun(timings, (7, 8), (8, 8))))
    assert isinstance(record, measurements.LiveLatency)
    assert record.pairs == ((10.0, 11.0), (40.0, 44.0))
    assert record.n_samples == 2
    assert record.median_absolute_error == pytest.approx(0.1)
    assert "same setting in 7 of 8 requests" in record.caption


def live_report(source: ReportSource, **changes: Any) -> dict[str, Any]:
    timing = {"sample_id": "s000", "tier": "low", "insertion_position": 1, "top_k": 8, "num_blocks": 12}
    agreement = dict.fromkeys(("same_setting", "settings_compared", "same_answer", "answers_compared"), 3)
    live = {"timings": [{**timing, "latency_ms": 11}, {**timing, "latency_ms": None}], "agreement": agreement}
    return {"cache": {"fingerprint": source.cache.fingerprint}, "live": live, **changes}


def test_a_live_report_is_read(source: ReportSource, tmp_path: Path):
    path = tmp_path / "report.json"
    path.write_text(json.dumps(live_report(source)))
    found = read_live_report(path, source.cache)
    assert found == LiveRun((LiveTiming("s000", KnobSetting("low", 1, 8, 12), 11.0),), (3, 3), (3, 3))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"live": None}, KnobctlError, "holds no live run: make it with `knobctl validate --live --json`"),
        ({"cache": {"fingerprint": "0" * 64}}, CacheMismatch, "report on another cache"),
        ({"live": {"timings": [{"latency_ms": -1}], "agreement": {}}}, KnobctlError, "must be"),
        ({"live": {"timings": 3, "agreement": {}}}, KnobctlError, '"live.timings" must be a list'),
    ],
)
def test_a_report_that_is_no_live_report_is_refused(
    source: ReportSource, tmp_path: Path, changes: dict[str, Any], error: type[KnobctlError], message: str
):
    path = tmp_path / "report.json"
    path.write_text(json.dumps(live_report(source, **changes)))
    with pytest.raises(error, match=message):
        read_live_report(path, source.cache)


GRPO = {"seed": 3, "estimator": "grpo", "best_epoch": 4}


def write_log(folder: Path, *lines: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log.jsonl").write_text("".join(json.dumps({"step": 1, **line}) + "\n" for line in lines))
    (folder / "train.json").write_text(json.dumps({"val_table_reward": 0.1, "val_oracle_reward": 0.9}))


def test_the_log_of_several_seeds_is_beside_their_folders(tmp_path: Path):
    lines = [{"seed": seed, "epoch": epoch, "val_reward": 0.1 * epoch} for epoch in (2, 4) for seed in (3, 5)]
    write_log(tmp_path, *lines, {"seed": 3, "epoch": 4, "reward": 0.3})
    log = read_training_log("mine", tmp_path / "seed-3", GRPO)
    assert log == TrainingLog("mine", 3, "grpo", (Evaluation(2, 0.2), Evaluation(4, 0.4)), 4, 0.1, 0.9)
    assert read_training_log("mine", tmp_path / "elsewhere", GRPO) is None
    assert read_training_log("mine", tmp_path / "seed-3", {}) is None


def test_a_log_that_training_did_not_write_is_refused(tmp_path: Path):
    write_log(tmp_path, {"seed": 3, "epoch": "second", "val_reward": 0.1})
    with pytest.raises(CheckpointError, match=r"log\.jsonl: line 1 has no whole number `epoch`"):
        read_training_log("mine", tmp_path, GRPO)


def test_runs_with_the_exact_gradient_are_the_reference(source: ReportSource):
    logs = [
        TrainingLog(kind, 0, kind, (Evaluation(1, 0.5),), 1, 0.1, 0.9 if same else 0.8)
        for kind, same in (("grpo", True), ("exact", False))
    ]
    record = training.training_curves(replace(source, training=tuple(logs)))
    assert isinstance(record, training.TrainingCurves)
    assert ([run.name for run in record.runs], [run.name for run in record.references]) == (["grpo"], ["exact"])
    assert (record.table_reward, record.oracle_reward) == (0.1, None)  # logs of two caches have two oracles
    assert isinstance(training.training_curves(source), Absent)


def test_every_figure_has_its_numbers_as_a_table_and_a_caption_with_n(source: ReportSource):
    made, left_out = make_figures(source)
    assert len(made) + len(left_out) == len(GALLERY)
    assert {one.name for one in made} == {"frontier", "differences", "reward", "latency", "gap", "choices", "settings"}
    for one in made:
        assert one.record.table.rows
        assert "n = 4 questions about 4 images (the test split)" in one.record.caption
    assert all(one.reason for one in left_out)
