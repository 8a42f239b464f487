"""Importance scores of other programs: every layout, and refusal of invalid scores with the reason."""

import json
from pathlib import Path

import pytest

from knobctl.data.errors import ImportanceError
from knobctl.data.importer import import_importance, load_importance, save_importance
from knobctl.data.plans import ImportanceScores, block_plan

EXAMPLES = Path(__file__).parent / "fixtures" / "import" / "importance"
SCORES = {str(block): 0.01 * (block + 1) for block in range(16)}
RISING = tuple(0.01 * (block + 1) for block in range(16))


def write(tmp_path, content, name="scores.json"):
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("name", "block_1", "source"),
    [
        ("plain_16.json", 0.081, "plain_16.json"),
        ("plain_14.json", 0.0395, "plain_14.json"),
        ("merged.json", 0.081324, "merged.json: merged_scores (weighted_avg)"),
        ("comparison.json", 0.08424, "comparison.json: train_scores"),
        ("sensitivity_results.json", 0.081, "sensitivity_results.json: importance_scores"),
    ],
)
def test_the_examples_are_read(name, block_1, source):
    scores = import_importance([EXAMPLES / name])
    assert (scores.n_blocks, scores.scores[1], scores.source) == (16, block_1, source)


def test_the_example_skips_the_same_blocks_as_the_recorded_runs():
    scores = import_importance([EXAMPLES / "merged.json"])
    dropped = {
        n: [b for b, k in enumerate(block_plan(None, 8, n, importance=scores, native_top_k=(8,) * 16)) if not k]
        for n in (15, 14, 13, 12)
    }
    assert dropped == {15: [4], 14: [4, 13], 13: [4, 10, 13], 12: [2, 4, 10, 13]}


def test_scores_of_14_blocks_always_keep_the_first_and_last():
    scores = import_importance([EXAMPLES / "plain_14.json"])
    assert (scores.scores[0], scores.scores[15]) == (None, None)
    plan = block_plan(None, 8, 2, importance=scores, native_top_k=(8,) * 16)
    assert [block for block, k in enumerate(plan) if k] == [0, 15]


@pytest.mark.parametrize("layout", ["merged_scores", "train_scores", "importance_scores", "okvqa_scores"])
def test_scores_are_found_in_every_layout(tmp_path, layout):
    path = write(tmp_path, {"dataset_name": "okvqa", "split": "train", layout: SCORES})
    assert import_importance([path]).scores == RISING


def test_precedence_is_merged_then_train_then_importance_scores(tmp_path):
    other = dict.fromkeys(SCORES, -1.0)
    assert (
        import_importance(
            [write(tmp_path, {"importance_scores": other, "train_scores": other, "merged_scores": SCORES})]
        ).scores
        == RISING
    )
    assert import_importance([write(tmp_path, {"importance_scores": other, "train_scores": SCORES})]).scores == RISING


def test_several_datasets_and_consistency_layouts(tmp_path):
    several = {"method": "average", "num_datasets": 2, "datasets": ["a", "b"], "per_dataset_metadata": {}}
    several |= {"merged_scores": SCORES, "ranking": [[b, s] for b, s in enumerate(RISING)]}
    assert import_importance([write(tmp_path, several)]).scores == RISING
    across = {"pairwise_correlations": {}, "mean_correlation": 0.9, "is_consistent": True}
    across |= {"dataset_scores": {"a": SCORES}, "merged_scores": SCORES}
    assert import_importance([write(tmp_path, across)]).scores == RISING
    assert import_importance([write(tmp_path, {"train_scores": SCORES, "val_scores": {}})]).scores == RISING


def test_several_task_scores_without_precedence_are_refused(tmp_path):
    with pytest.raises(ImportanceError, match="none that takes precedence: a_scores, b_scores"):
        import_importance([write(tmp_path, {"a_scores": SCORES, "b_scores": SCORES})])


def test_a_file_of_several_methods_needs_a_choice(tmp_path):
    nested = {"average": SCORES, "conservative": {b: 2 * s for b, s in SCORES.items()}, "median_rank": SCORES}
    path = write(tmp_path, {"merged_scores": nested, "rankings": {}, "consensus": {"0": 3}})
    with pytest.raises(ImportanceError, match="choose one with --method: average, conservative, median_rank"):
        import_importance([path])
    assert import_importance([path], method="conservative").scores == tuple(2 * s for s in RISING)
    with pytest.raises(ImportanceError, match="has no method 'mean'"):
        import_importance([path], method="mean")
    with pytest.raises(ImportanceError, match="lowest score: give --reverse"):
        import_importance([path], method="median_rank")


def test_a_method_that_the_file_does_not_state_is_refused(tmp_path):
    path = write(tmp_path, {"method": "average", "merged_scores": SCORES})
    assert import_importance([path], method="average").scores == RISING
    with pytest.raises(ImportanceError, match="method 'average', not of 'robust_avg'"):
        import_importance([path], method="robust_avg")
    with pytest.raises(ImportanceError, match="one unnamed method"):
        import_importance([write(tmp_path, SCORES)], method="average")


def test_median_rank_is_refused_unless_reversed(tmp_path):
    merged = {"method": "median_rank", "merged_scores": {str(b): float(b) for b in range(16)}}
    path = write(tmp_path, merged, "X.json")
    with pytest.raises(ImportanceError, match="median_rank"):
        import_importance([path])
    turned = import_importance([path], reverse=True)
    assert turned.scores == tuple(-float(b) for b in range(16))
    assert turned.source.endswith("reversed")


def test_the_simple_file_of_a_median_rank_file_is_refused_too(tmp_path):
    scores = {str(b): float(b) for b in range(16)}
    write(tmp_path, {"method": "median_rank", "merged_scores": scores}, "X.json")
    simple = write(tmp_path, scores, "X_simple.json")
    with pytest.raises(ImportanceError, match="median_rank"):
        import_importance([simple])
    assert import_importance([simple], reverse=True).scores[0] == 0.0
    (tmp_path / "X.json").unlink()
    assert import_importance([simple]).scores[15] == 15.0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"3": None}, "block 3 was not measured"),
        ({"16": 0.1}, "scores block 16, but the last of 16 blocks is 15"),
        ({"-1": 0.1}, "not a known layout"),
        ({"3": "0.5"}, "block 3 must be a number"),
        ({"3": True}, "block 3 must be a number"),
        ({"3": [0.1]}, "block 3 must be a number"),
        ({"03": 0.1}, "not a known layout"),
    ],
)
def test_invalid_scores_are_refused_with_the_reason(tmp_path, change, reason):
    with pytest.raises(ImportanceError, match=reason):
        import_importance([write(tmp_path, SCORES | change)])


@pytest.mark.parametrize("missing", [["0"], ["15"], ["7"], ["0", "15", "7"], ["1", "15"], list(SCORES)])
def test_missing_blocks_are_refused_except_in_the_documented_layout(tmp_path, missing):
    scores = {block: score for block, score in SCORES.items() if block not in missing}
    with pytest.raises(ImportanceError, match=r"lacks the score of block|score per block"):
        import_importance([write(tmp_path, scores)])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"0": NaN}', "NaN"),
        ('{"0": 1e999}', "too large"),
        ('{"0": 1, "0": 2}', "twice"),
        ('{"0": 1', "not JSON"),
        ("", "not JSON"),
        ("[" * 100_000, "nested deeper"),
        ("[1, 2]", "object"),
        ("{}", "object"),
        ('{"merged_scores": [1, 2]}', "object with a score per block"),
        ('{"hello": "world"}', "not a known layout"),
    ],
)
def test_damaged_and_foreign_files_are_refused(tmp_path, text, reason):
    with pytest.raises(ImportanceError, match=reason):
        import_importance([write(tmp_path, text)])


def test_a_ranking_that_contradicts_the_scores_is_refused(tmp_path):
    ranking = [[b, RISING[b]] for b in range(16)]
    path = write(tmp_path, {"method": "average", "merged_scores": SCORES, "ranking": ranking})
    assert import_importance([path]).scores == RISING
    path = write(tmp_path, {"method": "average", "merged_scores": SCORES, "ranking": ranking[::-1]})
    with pytest.raises(ImportanceError, match="contradicts the scores at block 14"):
        import_importance([path])


def single(block, **changes):
    record = {"block_idx": block, "baseline_accuracy": 0.8, "ablated_accuracy": 0.8 - RISING[block]}
    record |= {"importance_score": RISING[block], "num_samples": 100, "dataset_name": "okvqa", "split": "train"}
    return record | changes


def test_single_block_files_are_combined(tmp_path):
    paths = [write(tmp_path, single(b), f"sensitivity_block_{b}.json") for b in reversed(range(16))]
    scores = import_importance(paths)
    assert scores.scores == RISING
    assert scores.source == "16 single-block files of okvqa train"
    assert import_importance(
        [p for p in paths if p.stem not in ("sensitivity_block_0", "sensitivity_block_15")]
    ).scores[::15] == (None, None)
    with pytest.raises(ImportanceError, match="lacks the score of block 7"):
        import_importance([path for path in paths if path.stem != "sensitivity_block_7"])
    with pytest.raises(ImportanceError, match="another of the files"):
        import_importance([*paths, paths[3]])


def test_single_block_files_of_several_runs_are_refused(tmp_path):
    paths = [write(tmp_path, single(b), f"sensitivity_block_{b}.json") for b in range(16)]
    write(tmp_path, single(3, split="validation"), "sensitivity_block_3.json")
    with pytest.raises(ImportanceError, match="different runs"):
        import_importance(paths)
    write(tmp_path, single(3, block_idx=4), "sensitivity_block_3.json")
    with pytest.raises(ImportanceError, match="name and content disagree"):
        import_importance(paths)
    write(tmp_path, SCORES, "sensitivity_block_3.json")
    with pytest.raises(ImportanceError, match="give one score file, or all single-block files"):
        import_importance(paths)


def test_the_own_format_round_trips(tmp_path):
    path = tmp_path / "importance.json"
    for scores in (
        ImportanceScores(RISING, tuple(0.001 for _ in RISING), 5, "measured"),
        import_importance([EXAMPLES / "plain_14.json"]),
    ):
        save_importance(scores, path)
        assert load_importance(path, n_blocks=16) == scores
    with pytest.raises(ImportanceError, match="scores 16 blocks, but the model has 24"):
        load_importance(path, n_blocks=24)
    with pytest.raises(ImportanceError, match="own file"):
        load_importance(path, reverse=True)
    with pytest.raises(ImportanceError, match="cannot be written"):
        save_importance(scores, tmp_path / "absent" / "importance.json")


def test_load_reads_foreign_layouts_too():
    path = EXAMPLES / "merged.json"
    assert load_importance(path) == import_importance([path])
    with pytest.raises(ImportanceError, match="the last of 12 blocks is 11"):
        load_importance(path, n_blocks=12)


def test_absent_files_are_named(tmp_path):
    with pytest.raises(ImportanceError, match=r"absent\.json cannot be read: No such file"):
        import_importance([tmp_path / "absent.json"])
    with pytest.raises(ImportanceError, match="no score file"):
        import_importance([])
