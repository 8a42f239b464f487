"""The four VQA metrics on cases computed with their original implementations, and the differences between them."""

import pytest

from knobctl.data.errors import DatasetError
from knobctl.data.metrics import METRICS, Scorer, score
from knobctl.data.metrics.contractions import CONTRACTIONS

VQA_METRICS = ("vqa_official", "textvqa", "vqa_lmms", "vqa_simple")


def answers(*counted):
    """Expands answers: `("yes", 9), "no"` is nine times yes and one no."""
    return [text for item in counted for text in ([item] if isinstance(item, str) else [item[0]] * item[1])]


# answers, prediction, scores of vqa_official, textvqa, vqa_lmms, vqa_simple; `x` matches nothing
VECTORS = [
    (answers(("yes", 10)), "yes", (1, 1, 1, 1)),
    (answers(("yes", 10)), "Yes.", (0, 1, 1, 1)),
    (answers(("yes", 9), "no"), "Yes.", (1, 1, 1, 1)),
    (answers(("yes", 9), "no"), "no", (0.3, 0.3, 0.3, 1 / 3)),
    (answers(("2", 5), ("two", 5)), "two", (1, 1, 1, 1)),
    (answers(("the dog", 3), ("cat", 7)), "dog", (0.9, 0.9, 0.9, 1)),
    (answers(("dont walk", 4), ("stop", 6)), "don't walk", (1, 1, 1, 1)),
    (answers(("1,000", 2), ("x", 8)), "1000", (0.6, 0.6, 0.6, 2 / 3)),
    (answers(("a/b", 4), ("x", 6)), "a b", (1, 1, 1, 1)),
    (answers(("joe's", 4), ("x", 6)), "joe's", (1, 1, 1, 1)),
    (answers(("joe's", 4), ("x", 6)), "joe 's", (0, 1, 0, 0)),
    (answers(("3.5", 4), ("x", 6)), "3.5.", (1, 1, 1, 1)),
    (answers(("st.", 4), ("x", 6)), "st", (1, 1, 1, 1)),
    (answers(("U.S.A.", 4), ("x", 6)), "usa", (1, 1, 1, 1)),
    (answers(("red,white", 4), ("x", 6)), "red white", (1, 0, 1, 1)),
    (answers(("red,white", 4), ("x", 6)), "redwhite", (0, 1, 0, 0)),
    (answers(("1,000-2", 4), ("x", 6)), "10002", (1, 0, 1, 1)),
    (answers(("x-ray", 4), ("x", 6)), "x ray", (1, 1, 1, 1)),
    (answers(("10:30", 4), ("x", 6)), "1030", (0, 0, 0, 0)),
    (answers(("none", 4), ("x", 6)), "0", (1, 1, 1, 1)),
    (answers(("the", 4), ("x", 6)), "a", (1, 1, 1, 1)),
    (answers(("2", 10)), "two", (0, 1, 1, 1)),
    (answers(("what's", 4), ("x", 6)), "what 's", (0, 1, 0, 0)),
]


@pytest.mark.parametrize(("references", "prediction", "expected"), VECTORS)
def test_published_vectors(references, prediction, expected):
    assert tuple(score(metric, prediction, references) for metric in VQA_METRICS) == expected


@pytest.mark.parametrize(
    ("matches", "left_out", "simple"), [(0, 0, 0), (1, 0.3, 1 / 3), (2, 0.6, 2 / 3), (3, 0.9, 1), (4, 1, 1), (9, 1, 1)]
)
def test_scores_of_matches_among_ten_answers(matches, left_out, simple):
    references = answers(("cat", matches), ("dog", 10 - matches))
    assert tuple(score(metric, "cat", references) for metric in VQA_METRICS) == (left_out,) * 3 + (simple,)


def test_two_commas_between_digits_count_for_lmms_only():
    references = answers(("1,,000-2", 4), ("x", 6))  # where the rule matches, every mark is deleted
    assert score("vqa_lmms", "10002", references) == 1
    assert score("vqa_official", "10002", references) == 0
    assert score("vqa_official", "1 000 2", references) == 1
    assert score("vqa_simple", "1 000 2", references) == 1


def test_a_mark_next_to_a_space_is_deleted_everywhere():
    references = answers(("a-b -c", 4), ("x", 6))
    assert score("vqa_official", "ab c", references) == 1
    assert score("vqa_official", "a b c", references) == 0


def test_at_most_32_full_stops_are_removed():
    references = answers(("a" + "." * 40, 4), ("x", 6))
    assert score("vqa_official", "a" + "." * 8, references) == 0  # all eight stops are removed
    assert score("vqa_official", "a" + "." * 40, references) == 1


def test_newline_and_tab_become_spaces_even_if_all_answers_are_equal():
    assert score("vqa_official", " red\tcar\n", answers(("red car", 10))) == 1
    assert score("vqa_official", "red car", ["red\ncar", *answers(("red car", 9))]) == 1


@pytest.mark.parametrize("prediction", ["", "the", "a an"])
def test_an_empty_answer_matches_an_empty_prediction(prediction):
    references = answers(("the", 4), ("x", 6))
    assert [score(metric, prediction, references) for metric in VQA_METRICS] == [1, 1, 1, 1]
    unanimous = answers(("the", 10))
    assert [score(metric, "", unanimous) for metric in VQA_METRICS] == [0, 1, 1, 1]


def test_fewer_answers_than_ten():
    references = ["cat", "cat", "dog"]
    assert score("vqa_simple", "cat", references) == 2 / 3
    # leaving out a cat, twice: one match among the others, 1/3 each; leaving out the dog: two matches, 2/3
    assert score("textvqa", "cat", references) == pytest.approx((1 / 3 + 1 / 3 + 2 / 3) / 3)


def test_ok_vqa_answers_count_twice():
    references = [text for text in ("race", "run", "ride", "jump", "race") for _ in range(2)]
    assert [score(metric, "run", references) for metric in VQA_METRICS] == [0.6, 0.6, 0.6, 2 / 3]
    assert [score(metric, "race", references) for metric in VQA_METRICS] == [1, 1, 1, 1]


def test_exact_match_ignores_case_and_spacing_only():
    assert score("exact_match", " 12  Euro\n", ["12 euro"]) == 1
    assert score("exact_match", "twelve euro", ["12 euro"]) == 0
    assert score("exact_match", "12 euro.", ["12 euro"]) == 0
    assert score("exact_match", "two", ["one", "two"]) == 1


def test_the_contraction_table_is_the_official_one():
    assert len(CONTRACTIONS) == 120
    pairs = {"aint": "ain't", "doesnt": "doesn't", "somebody'd": "somebodyd", "ow's'at": "'ow's'at", "twas": "'twas"}
    assert pairs.items() <= CONTRACTIONS.items()
    assert "ill" not in CONTRACTIONS
    assert "its" not in CONTRACTIONS


def test_unknown_metric_names_the_known_ones():
    with pytest.raises(DatasetError, match=r"`bleu`.*vqa_official.*exact_match"):
        score("bleu", "a", ["a"])


@pytest.mark.parametrize("metric", METRICS)
def test_no_answers_cannot_be_scored(metric):
    with pytest.raises(DatasetError, match="without reference answers"):
        Scorer(metric, [])
    with pytest.raises(DatasetError, match="list of strings"):
        Scorer(metric, "yes")
