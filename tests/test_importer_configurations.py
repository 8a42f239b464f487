"""Reading a results directory: other blocks, older schemas, missing ranks and empty configurations are reported."""

import json

import polars as pl
import pytest

from knobctl.data.errors import ResultsError
from knobctl.data.importer import recorded_outcomes
from knobctl.tests.support.import_checks import codes, findings
from knobctl.tests.support.results_dirs import (
    BLOCKS,
    as_file,
    make_questions,
    some_rows,
    write,
    write_configuration,
    write_rows,
)


def test_a_configuration_without_rows_is_not_a_measurement(tmp_path):
    write_rows(tmp_path, some_rows())
    write_rows(tmp_path, [], top_k=4)
    recorded = recorded_outcomes(tmp_path)
    assert recorded.table["top_k"].unique().to_list() == [8]
    assert findings(recorded.report, "empty_configuration")[0].level == "warning"


def test_repeated_blocks_are_reported_and_counted_once(tmp_path):
    listed = [0, 0, 1, 5, 6, 7, 8, 9, 12, 14, 15, 15]
    write_rows(tmp_path, some_rows(num_blocks=12), num_blocks=12, active_block_indices=listed)
    recorded = recorded_outcomes(tmp_path)
    assert recorded.table["num_blocks"].unique().to_list() == [10]
    assert recorded.table["active_block_indices"][0].to_list() == [0, 1, 5, 6, 7, 8, 9, 12, 14, 15]
    (finding,) = findings(recorded.report, "repeated_blocks")
    assert "12 entries, 10 blocks" in finding.what


def test_other_blocks_under_the_same_name_are_kept_apart(tmp_path):
    old_scores = [b for b in range(16) if b not in (3, 4)]
    rows = some_rows(num_blocks=14)
    write_rows(tmp_path, rows[:2], num_blocks=14, rank=0)
    write_rows(tmp_path, rows, num_blocks=14, rank=1, active_block_indices=old_scores)
    recorded = recorded_outcomes(tmp_path)
    sets = recorded.table.group_by(pl.col("active_block_indices").cast(pl.List(pl.String)).list.join(",")).len()
    assert dict(sets.iter_rows()) == {",".join(map(str, BLOCKS[14])): 2, ",".join(map(str, old_scores)): 4}
    assert findings(recorded.report, "mixed_blocks")[0].level == "warning"


def test_absent_and_invalid_block_lists_mean_unknown_blocks(tmp_path):
    content = as_file(some_rows(), "low", 8, 16, None)
    write(tmp_path, "text_vqa", content)
    write_rows(tmp_path, some_rows(top_k=4), top_k=4, active_block_indices=[0, 1, 99])
    recorded = recorded_outcomes(tmp_path)
    assert recorded.table["active_block_indices"].null_count() == 8
    assert recorded.table["num_blocks"].unique().to_list() == [16]
    assert {"no_block_list", "bad_block_list"} <= codes(recorded.report)


def old_schema(rows):
    for row in rows:
        del row["T_decode_per_step"]
        row |= {"T_vision_encoder": 8.0, "T_projector": 1.0}
        row["T_LLM_decode"] = row["T_total"] - row["T_vision_total"] - row["T_LLM_prefill"]
    return rows


def test_times_of_an_older_schema_are_not_mixed_with_later_ones(tmp_path):
    write_rows(tmp_path, some_rows())
    write_rows(tmp_path, old_schema(some_rows(top_k=4)), top_k=4)
    recorded = recorded_outcomes(tmp_path)
    old = recorded.table.filter(pl.col("top_k") == 4)
    assert old.select("latency_ms", "vision_ms", "prefill_ms", "decode_ms").null_count().row(0) == (4, 4, 4, 4)
    assert old["accuracy"].null_count() == 0
    assert recorded.table.filter(pl.col("top_k") == 8)["latency_ms"].null_count() == 0
    (finding,) = findings(recorded.report, "older_schema")
    assert (finding.rows, finding.level) == (4, "warning")


def test_an_older_directory_keeps_its_totals_but_not_its_decode_difference(tmp_path):
    write_rows(tmp_path, old_schema(some_rows()))
    recorded = recorded_outcomes(tmp_path)
    assert recorded.table["latency_ms"].null_count() == 0
    assert recorded.table["decode_ms"].null_count() == 4
    assert codes(recorded.report, "warning") == {"older_schema_alone"}


def test_missing_ranks_and_questions_are_reported(tmp_path):
    asked = make_questions("text_vqa", 12)
    write_configuration(tmp_path, asked, "low", 4, 12, shape="merged", ranks=4)
    ranks = write_configuration(tmp_path, asked, "low", 8, 16, shape="ranks", ranks=4)
    ranks[2].unlink()
    recorded = recorded_outcomes(tmp_path)
    assert findings(recorded.report, "missing_ranks")[0].what.endswith("text_vqa low/k8/n16, rank 2")
    (lacking,) = findings(recorded.report, "missing_questions")
    assert (lacking.rows, "9 of 12 questions" in lacking.what) == (3, True)


def test_a_merged_file_without_a_rank_is_reported(tmp_path):
    asked = make_questions("text_vqa", 12)
    write_configuration(tmp_path, asked, "low", 4, 12, shape="merged", ranks=4)
    (path,) = write_configuration(tmp_path, asked, "low", 8, 16, shape="merged", ranks=4)
    content = json.loads(path.read_text())
    content["per_sample_results"] = content["per_sample_results"][:9]
    path.write_text(json.dumps(content))
    (lacking,) = findings(recorded_outcomes(tmp_path).report, "missing_questions")
    assert "rows of 3 ranks, other configurations have 4" in lacking.what


def test_other_datasets_are_left_out_unless_named(tmp_path):
    write_rows(tmp_path, some_rows())
    write_rows(tmp_path, some_rows(dataset="science_qa_img"), dataset="science_qa_img")
    recorded = recorded_outcomes(tmp_path)
    assert recorded.table["dataset"].unique().to_list() == ["text_vqa"]
    assert findings(recorded.report, "other_dataset")[0].level == "warning"
    named = recorded_outcomes(tmp_path, datasets=["science-qa-img"])
    assert named.table["dataset"].unique().to_list() == ["science_qa_img"]
    with pytest.raises(ResultsError, match="no results of doc_qa: it has science_qa_img, text_vqa"):
        recorded_outcomes(tmp_path, datasets=["doc_qa"])


def test_an_id_with_two_questions_keeps_the_more_frequent_one(tmp_path):
    for top_k in (4, 6, 8):
        rows = some_rows(2, top_k=top_k)
        if top_k == 4:
            rows[0]["metadata"]["question"] = "a question of another split?"
        write_rows(tmp_path, rows, top_k=top_k)
    recorded = recorded_outcomes(tmp_path)
    assert recorded.table.height == 5
    assert recorded.questions["question"].str.contains("another split").sum() == 0
    (finding,) = findings(recorded.report, "conflicting_question")
    assert (finding.level, finding.rows, finding.examples) == ("error", 1, ("34602",))
