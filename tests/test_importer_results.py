"""Reading a results directory: which measurements count, missing values, and damaged files.

What is read of whole configurations is in test_importer_configurations.py.
"""

import json
import random
import shutil
from pathlib import Path

import polars as pl
import pytest

from knobctl.data.errors import DatasetError, ResultsError
from knobctl.data.importer import recorded_outcomes
from knobctl.tests.support.import_checks import check_against, codes, findings
from knobctl.tests.support.recorded_progress import RecordedProgress
from knobctl.tests.support.results_dirs import (
    SHAPES,
    Written,
    deal,
    make_questions,
    some_rows,
    write_configuration,
    write_messy_directory,
    write_rows,
)

EXAMPLE = Path(__file__).parent / "fixtures" / "import" / "core_exp"


# 1. Every question counts once per configuration


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ranks", [1, 3, 4])
def test_each_question_counts_once_in_any_shape_on_disk(tmp_path, shape, ranks):
    written = Written()
    write_configuration(
        tmp_path, make_questions("text_vqa", 10), "low", 4, 12, shape=shape, ranks=ranks, written=written
    )
    recorded = recorded_outcomes(tmp_path)
    check_against(recorded, written)
    assert recorded.table.height == 10
    assert codes(recorded.report, "error") == set()


def test_padding_repeats_keep_the_first_measurement_and_are_counted(tmp_path):
    asked = make_questions("text_vqa", 10)
    assert sum(len(rank) for rank in deal(asked, 4)) == 12  # two questions are assigned twice
    written = Written()
    write_configuration(tmp_path, asked, "low", 4, 12, shape="merged", ranks=4, written=written)
    recorded = recorded_outcomes(tmp_path)
    (repeats,) = findings(recorded.report, "repeats")
    assert (repeats.level, repeats.rows) == ("info", 2)
    twice = {i: rows for i, rows in written.rows["text_vqa", "low", 4, 12].items() if len(rows) == 2}
    for example_id, (first, second) in twice.items():
        row = recorded.table.row(by_predicate=pl.col("example_id") == str(example_id), named=True)
        assert row["latency_ms"] == pytest.approx(first["T_total"], rel=1e-6)
        assert row["latency_ms"] != pytest.approx(second["T_total"], rel=1e-6)


def test_leftover_rank_files_add_nothing_to_the_merged_file(tmp_path):
    asked = make_questions("text_vqa", 8)
    merged, *leftovers = write_configuration(tmp_path, asked, "low", 4, 12, shape="leftovers", ranks=4)
    recorded = recorded_outcomes(tmp_path)
    assert {Path(name).name for name in recorded.table["file"].unique()} == {merged.name}
    assert sum(finding.rows for finding in findings(recorded.report, "leftover_rows")) == 6
    for path in leftovers:
        path.unlink()
    assert recorded_outcomes(tmp_path).table.equals(recorded.table)


def test_sample_id_does_not_identify_a_question(tmp_path):
    rows = some_rows()
    for row in rows:
        row["sample_id"] = 0
    write_rows(tmp_path, rows)
    assert recorded_outcomes(tmp_path).table.height == 4


def test_the_same_id_in_two_datasets_is_two_questions(tmp_path):
    for dataset in ("text_vqa", "okvqa"):
        write_rows(tmp_path, some_rows(dataset=dataset), dataset=dataset)
    recorded = recorded_outcomes(tmp_path)
    assert recorded.table["example_id"].n_unique() == 4
    assert recorded.questions["sample_id"].n_unique() == 8


def test_a_number_and_its_text_are_the_same_id(tmp_path):
    rows = some_rows(1)
    again = json.loads(json.dumps(rows[0]))
    again["metadata"]["example_id"] = str(again["metadata"]["example_id"])
    write_rows(tmp_path, [rows[0], again])
    assert recorded_outcomes(tmp_path).table.height == 1


def test_a_complete_measurement_is_preferred_to_an_earlier_incomplete_one(tmp_path):
    first, second = some_rows(1)[0], some_rows(1)[0]
    first["T_total"], second["T_total"] = 0.0, 77.0
    write_rows(tmp_path, [first, second])
    assert recorded_outcomes(tmp_path).table["latency_ms"].to_list() == [77.0]


def test_contradictory_measurements_are_reported(tmp_path):
    first, second = some_rows(1)[0], some_rows(1)[0]
    second["pred"] = "something else"
    write_rows(tmp_path, [first, second])
    report = recorded_outcomes(tmp_path).report
    assert findings(report, "differing_repeats")[0].level == "warning"


# 2. No value comes from the file-level statistics


def test_file_level_statistics_change_nothing(tmp_path):
    write_rows(tmp_path / "a", some_rows())
    nonsense = {"accuracy": 0.123, "latency_stats": {"T_total_mean": 1.0}, "aggregate_stats": {"T_total_mean": 2.0}}
    write_rows(tmp_path / "b", some_rows(), **nonsense)
    one, other = recorded_outcomes(tmp_path / "a"), recorded_outcomes(tmp_path / "b")
    assert one.table.equals(other.table)
    rows = some_rows()
    assert one.report.configurations[0]["mean_accuracy"] == pytest.approx(sum(r["accuracy"] for r in rows) / 4)


# 3. Missing stays missing


@pytest.mark.parametrize(
    ("key", "column", "value"),
    [
        ("T_total", "latency_ms", 0.0),
        ("T_total", "latency_ms", float("nan")),
        ("T_total", "latency_ms", None),
        ("T_vision_total", "vision_ms", 0.0),
        ("T_LLM_prefill", "prefill_ms", 0),
        ("accuracy", "accuracy", float("nan")),
        ("accuracy", "accuracy", None),
        ("output_tokens", "output_tokens", None),
        ("pred", "answer", None),
    ],
)
@pytest.mark.parametrize("absent", [False, True])
def test_missing_values_are_null_and_never_zero(tmp_path, key, column, value, absent):
    rows = some_rows(2)
    rows[0][key] = value
    if absent:
        del rows[0][key]
    write_rows(tmp_path, rows)
    recorded = recorded_outcomes(tmp_path)
    assert recorded.table.filter(pl.col(column).is_null())["example_id"].to_list() == ["34602"]
    assert codes(recorded.report, "error") == set()
    assert any(f.rows == 1 for f in recorded.report.findings if f.code.startswith("missing_"))


def test_total_is_never_the_sum_of_stages(tmp_path):
    rows = some_rows(1)
    rows[0]["T_total"] = 0.0
    write_rows(tmp_path, rows)
    row = recorded_outcomes(tmp_path).table.row(0, named=True)
    assert row["latency_ms"] is None
    assert row["vision_ms"] > 0


@pytest.mark.parametrize(("tokens", "expected"), [(1, 0.0), (2, None), (None, None)])
def test_decode_time_zero_is_valid_only_for_one_output_token(tmp_path, tokens, expected):
    rows = some_rows(1)
    rows[0] |= {"output_tokens": tokens, "T_LLM_decode": 0.0, "T_decode_per_step": []}
    write_rows(tmp_path, rows)
    assert recorded_outcomes(tmp_path).table["decode_ms"].to_list() == [expected]


def test_failed_scoring_is_not_a_wrong_answer(tmp_path):
    rows = some_rows(4)
    rows[1] |= {"accuracy": 0.0, "pred": "", "metadata": {}}
    rows[2] |= {"accuracy": 0.0, "pred": ""}  # an empty answer: wrong, but measured
    write_rows(tmp_path, rows)
    recorded = recorded_outcomes(tmp_path)
    assert recorded.table["example_id"].to_list() == ["34602", "34616", "34623"]
    assert recorded.table["accuracy"][1] == 0.0
    (failed,) = findings(recorded.report, "scoring_failed")
    assert (failed.rows, failed.level) == (1, "warning")


def test_a_row_without_identity_is_left_out_and_counted(tmp_path):
    rows = some_rows(3)
    rows[0]["metadata"] = {}
    del rows[1]["metadata"]
    write_rows(tmp_path, rows)
    recorded = recorded_outcomes(tmp_path)
    assert recorded.table.height == 1
    assert findings(recorded.report, "no_identity")[0].rows == 2


def test_question_id_replaces_a_missing_example_id(tmp_path):
    rows = some_rows(2)
    for row in rows:
        row["metadata"]["question_id"] = row["metadata"].pop("example_id")
    write_rows(tmp_path, rows)
    recorded = recorded_outcomes(tmp_path)
    assert recorded.table["example_id"].to_list() == ["34602", "34609"]
    assert findings(recorded.report, "question_id_used")[0].rows == 2


# 4. A truncated, empty or foreign file costs only itself


def test_damage_affects_only_its_own_data_and_is_reported(tmp_path):
    written = write_messy_directory(tmp_path, seed=3, datasets=("text_vqa",), damage=True)
    recorded = recorded_outcomes(tmp_path)
    check_against(recorded, written)
    named = {finding.file for finding in recorded.report.findings}
    assert {str(path.relative_to(tmp_path)) for path in written.damaged} <= named
    assert recorded.report.files_left_out == 5
    assert {"unreadable_file", "not_results"} <= codes(recorded.report, "error")
    assert {"combined_file", "foreign_file", "no_tiers"} <= codes(recorded.report, "warning")


def test_truncation_anywhere_loses_only_that_file(tmp_path):
    write_rows(tmp_path, some_rows(), top_k=8)
    path = write_rows(tmp_path, some_rows(3, top_k=4), top_k=4)
    whole = path.read_bytes()
    for cut in random.Random(0).sample(range(len(whole)), 40):
        path.write_bytes(whole[:cut])
        recorded = recorded_outcomes(tmp_path)
        assert recorded.table["top_k"].unique().to_list() == [8]
        assert findings(recorded.report, "unreadable_file")[0].file.endswith(path.name)


def test_strict_makes_errors_fatal(tmp_path):
    write_rows(tmp_path, some_rows())
    recorded_outcomes(tmp_path, strict=True)
    broken = write_rows(tmp_path, some_rows(3, top_k=4), top_k=4)
    broken.write_text(broken.read_text()[:-20])
    with pytest.raises(ResultsError, match=r"topk4_blocks16\.json: cannot be read: cut off"):
        recorded_outcomes(tmp_path, strict=True)


def test_a_directory_without_usable_rows_is_an_error_with_the_reason(tmp_path):
    with pytest.raises(ResultsError, match="does not exist"):
        recorded_outcomes(tmp_path / "absent")
    with pytest.raises(ResultsError, match="give that directory"):
        recorded_outcomes(tmp_path)
    broken = write_rows(tmp_path, some_rows())
    broken.write_text("")
    with pytest.raises(ResultsError, match="empty file"):
        recorded_outcomes(tmp_path)


def test_a_file_whose_name_contradicts_its_content_is_left_out(tmp_path):
    good = write_rows(tmp_path, some_rows())
    shutil.copy(good, good.with_name(good.name.replace("topk8", "topk6")))
    (tmp_path / "okvqa").mkdir()
    shutil.copy(good, tmp_path / "okvqa" / good.name)
    recorded = recorded_outcomes(tmp_path)
    assert recorded.table["top_k"].unique().to_list() == [8]
    assert len(findings(recorded.report, "name_contradicts_content")) == 2


# 5. The result does not depend on the order of files


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_order_of_listing_and_number_of_processes_change_nothing(tmp_path, seed, monkeypatch):
    written = write_messy_directory(
        tmp_path, seed=seed, datasets=("text_vqa", "okvqa"), questions=7, top_k=(4,), ranks=3
    )
    recorded = recorded_outcomes(tmp_path)
    check_against(recorded, written)
    from knobctl.data.importer import reading, result_files

    real = result_files.os.scandir

    def shuffled(path):
        entries = list(real(path))
        random.Random(seed).shuffle(entries)
        return iter(entries)

    monkeypatch.setattr(result_files.os, "scandir", shuffled)
    if seed == 0:
        monkeypatch.setattr(reading, "SERIAL_BYTES", 0)  # read in two processes
    again = recorded_outcomes(tmp_path, workers=2)
    assert again.table.equals(recorded.table)
    assert again.questions.equals(recorded.questions)
    assert again.report.to_dict() == recorded.report.to_dict()


def test_the_order_of_files_does_not_matter(tmp_path):
    write_messy_directory(tmp_path / "a", seed=5, datasets=("text_vqa",), questions=7, top_k=(4,))
    paths = sorted((tmp_path / "a" / "text-vqa").iterdir(), reverse=True)
    (tmp_path / "b" / "text-vqa").mkdir(parents=True)
    for path in paths:
        shutil.copyfile(path, tmp_path / "b" / "text-vqa" / path.name)
    one, other = recorded_outcomes(tmp_path / "a"), recorded_outcomes(tmp_path / "b")
    assert one.table.equals(other.table)


# The example, metrics and progress


def test_the_example_is_read():
    progress = RecordedProgress()
    recorded = recorded_outcomes(EXAMPLE, progress=progress)
    assert recorded.table.height == 48
    assert (recorded.n_blocks, recorded.runs) == (16, 5)
    assert recorded.tier_crops == {"low": (1, 3), "medium": (4, 8), "high": (9, 15)}
    assert codes(recorded.report) == {"other_files"}
    assert progress.done == [(i, 6) for i in range(1, 7)]
    row = recorded.table.row(
        by_predicate=(pl.col("example_id") == "34644") & (pl.col("tier") == "high") & (pl.col("top_k") == 8), named=True
    )
    assert (row["answer"], row["output_tokens"], row["vision_tokens"]) == ("umbrella", 4, 928)
    assert row["latency_ms"] == pytest.approx(269.30485934892965)
    assert row["active_block_indices"] == list(range(16))


def test_the_profilers_metric_reproduces_the_recorded_accuracy():
    recorded, again = recorded_outcomes(EXAMPLE), recorded_outcomes(EXAMPLE, metric="vqa_simple")
    assert again.table.equals(recorded.table)
    assert "0 of 48 differ" in findings(again.report, "recomputed")[0].what
    official = recorded_outcomes(EXAMPLE, metric="vqa_official").table["accuracy"]
    assert (official <= recorded.table["accuracy"] + 1e-6).all()
    assert official.sum() < recorded.table["accuracy"].sum()
    with pytest.raises(DatasetError, match="unknown"):
        recorded_outcomes(EXAMPLE, metric="no_such_metric")


def test_recomputing_needs_prediction_and_answers(tmp_path):
    rows = some_rows(3)
    rows[0]["pred"] = None
    rows[1]["metadata"]["answers"] = None
    write_rows(tmp_path, rows)
    recorded = recorded_outcomes(tmp_path, metric="vqa_simple")
    assert recorded.table["accuracy"].is_null().to_list() == [True, True, False]
    assert findings(recorded.report, "cannot_recompute")[0].rows == 2
