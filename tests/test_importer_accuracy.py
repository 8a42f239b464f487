"""The scale of recorded accuracy, and whether the metric that recomputes it fits the stored answers."""

import json
import random

import pytest

from knobctl.data.cache.reader import open_cache
from knobctl.data.errors import ResultsError
from knobctl.data.importer import import_results, recorded_outcomes
from knobctl.tests.support.import_checks import codes, findings
from knobctl.tests.support.results_dirs import make_questions, measure, some_rows, write_rows

SETTINGS = (("low", 4), ("low", 8), ("high", 8))


def scored(*accuracies, **arguments):
    """Returns one row per accuracy."""
    rows = some_rows(len(accuracies), **arguments)
    return [{**row, "accuracy": accuracy} for row, accuracy in zip(rows, accuracies, strict=True)]


def write_files(root, *files, dataset="text_vqa"):
    """Writes one configuration for each sequence of accuracies."""
    for (tier, top_k), accuracies in zip(SETTINGS, files, strict=False):
        write_rows(root, scored(*accuracies, tier=tier, top_k=top_k, dataset=dataset), tier, top_k, dataset=dataset)


def kept(recorded, top_k):
    return recorded.table.filter(recorded.table["top_k"] == top_k).sort("example_id")["accuracy"].to_list()


@pytest.mark.parametrize("all_values", [(0, 30, 60, 100), (0.0, 0.5, 33.3, 0.0), (0, 1, 100, 0), (0, 0, 1000, 0)])
@pytest.mark.parametrize("by_chance", [(0, 0, 0, 0), (0.0, 1.0, 0.0, 1.0), (0.0, 0.5, 0.0, 0.0)])
def test_a_directory_in_percent_is_refused_with_advice(tmp_path, all_values, by_chance):
    write_files(tmp_path, all_values, by_chance)
    with pytest.raises(ResultsError, match=r"text_vqa.*topk4_blocks16\.json: in percent\?.*--metric text_vqa=METRIC"):
        recorded_outcomes(tmp_path)
    with pytest.raises(ResultsError, match="in percent"):
        import_results(tmp_path, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_file_in_percent_among_others_loses_only_its_accuracies(tmp_path):
    write_files(tmp_path, (0.0, 100.0, 0.0, 30.0), (0.0, 0.6, 1.0, 0.3), (0.0, 0.9, 1.0, 0.3))
    recorded = recorded_outcomes(tmp_path)
    assert kept(recorded, 4) == [None] * 4
    assert kept(recorded, 8).count(None) == 0
    assert recorded.table["latency_ms"].null_count() == recorded.table["answer"].null_count() == 0
    (finding,) = findings(recorded.report, "bad_accuracy")
    assert (finding.level, finding.rows) == ("error", 4)
    assert "in percent? The largest of 4 is 100" in finding.what
    with pytest.raises(ResultsError, match="in percent"):
        recorded_outcomes(tmp_path, strict=True)


def test_the_scale_is_judged_over_the_whole_directory(tmp_path):
    write_files(tmp_path, (0, 100), (0, 60), dataset="text_vqa")
    write_files(tmp_path, (0, 0), dataset="okvqa")
    with pytest.raises(ResultsError, match="accuracies of okvqa, text_vqa are not on the scale"):
        recorded_outcomes(tmp_path)
    assert recorded_outcomes(tmp_path, datasets=["okvqa"]).table["accuracy"].to_list() == [0, 0]


def test_scores_above_1_by_rounding_are_1(tmp_path):
    write_files(tmp_path, (0.0, 1.0000005, 0.3))
    recorded = recorded_outcomes(tmp_path)
    assert sorted(kept(recorded, 4)) == pytest.approx([0.0, 0.3, 1.0])
    assert "bad_accuracy" not in codes(recorded.report)


def test_a_value_between_1_and_2_affects_only_its_own_file(tmp_path):
    write_files(tmp_path, (0.0, 1.2, 1.0), (0.0, 1.0, 1.0))
    recorded = recorded_outcomes(tmp_path)
    assert kept(recorded, 4) == [None] * 3
    assert kept(recorded, 8) == [0.0, 1.0, 1.0]


def test_recomputed_accuracy_does_not_depend_on_the_recorded_scale(tmp_path):
    rows = some_rows(4)
    write_rows(tmp_path, [{**row, "accuracy": 100 * row["accuracy"]} for row in rows])
    recorded = recorded_outcomes(tmp_path, metric={"text_vqa": "vqa_simple"}, strict=True)
    assert sorted(recorded.table["accuracy"]) == pytest.approx(sorted(row["accuracy"] for row in rows))
    assert codes(recorded.report, "error") == set()


def test_each_dataset_is_recomputed_with_its_own_metric_or_not_at_all(tmp_path):
    for dataset in ("text_vqa", "okvqa"):
        write_files(tmp_path, (0.25, 0.75), dataset=dataset)
    report = import_results(tmp_path, tmp_path / "cache", metric={"okvqa": "exact_match"})
    assert [finding.rows for finding in findings(report, "recomputed")] == [2]
    cache = open_cache(tmp_path / "cache")
    recorded = (cache.samples["dataset"] == "text_vqa").to_numpy()
    assert sorted(cache.accuracy_SX[recorded].ravel()) == [0.25, 0.75]
    assert set(cache.accuracy_SX[~recorded].ravel()) <= {0, 1}
    assert cache.manifest.datasets["okvqa"]["metric"] == "exact_match"
    assert cache.manifest.datasets["text_vqa"]["metric"] == "as recorded"
    with pytest.raises(
        ResultsError, match="a metric was given for vqa2, but the datasets imported are okvqa, text_vqa"
    ):
        recorded_outcomes(tmp_path, metric={"vqa2": "exact_match"})


def test_a_metric_that_one_answer_cannot_satisfy_is_a_warning(tmp_path):
    rows = [{**row, "metadata": {**row["metadata"], "answers": [row["pred"]]}} for row in some_rows(5)]
    write_rows(tmp_path, rows)
    recorded = recorded_outcomes(tmp_path, metric="vqa_official")
    assert recorded.table["accuracy"].to_list() == [0.0] * 5
    (finding,) = findings(recorded.report, "no_full_score")
    assert finding.level == "warning"
    assert "5 of 5 questions have fewer than 4 answers" in finding.what
    assert "mean accuracy of 0.000" in finding.what
    assert "--metric text_vqa=exact_match" in finding.what
    assert "no_full_score" not in codes(recorded_outcomes(tmp_path, metric="exact_match").report)


# Where results lie


def test_attribute_files_of_macos_are_ignored(tmp_path):
    path = write_rows(tmp_path, some_rows())
    plain = recorded_outcomes(tmp_path, strict=True)
    path.with_name("._" + path.name).write_bytes(b"\0\5\26\7\0\2\0\0Mac OS X        ")
    (tmp_path / "._text-vqa").write_bytes(b"\0\5\26\7")
    (tmp_path / "__MACOSX" / "text-vqa").mkdir(parents=True)
    (tmp_path / "__MACOSX" / "text-vqa" / ("._" + path.name)).write_bytes(b"\0\5\26\7")
    recorded = recorded_outcomes(tmp_path, strict=True)
    assert recorded.table.equals(plain.table)
    assert recorded.report.findings == plain.report.findings


@pytest.mark.parametrize("datasets", [(), ("text-vqa",)])
@pytest.mark.parametrize("place", ["5run_2000samples", "core_exp_h100/5run_2000samples"])
def test_results_in_deeper_directories_are_named(tmp_path, place, datasets):
    write_rows(tmp_path / place, some_rows())
    write_rows(tmp_path / "__MACOSX" / place, some_rows())
    with pytest.raises(ResultsError) as error:
        recorded_outcomes(tmp_path, datasets=datasets)
    named = str(error.value).split("give that directory, ")[1].split(".")[0]
    assert named == str(tmp_path / place)
    assert recorded_outcomes(tmp_path / place, datasets=datasets).table.height == 4


def test_no_directory_is_named_without_results(tmp_path):
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    (tmp_path / "a" / "b" / "notes.json").write_text(json.dumps({}))
    with pytest.raises(ResultsError) as error:
        recorded_outcomes(tmp_path)
    assert "directory itself," not in str(error.value)


def test_generated_rows_have_scores_between_0_and_1():
    values = {measure(q, "low", 8, 16, random.Random(5))["accuracy"] for q in make_questions("text_vqa", 80)}
    assert values & {1 / 3, 2 / 3}  # such values distinguish the scale 0 to 1 from percent
