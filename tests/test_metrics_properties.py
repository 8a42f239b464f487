"""Properties of every metric on arbitrary text, and agreement with a direct implementation of the rules."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knobctl.data.metrics import METRICS, Scorer, score
from knobctl.data.metrics.contractions import CONTRACTIONS

VQA_METRICS = ("vqa_official", "textvqa", "vqa_lmms", "vqa_simple")
PIECES = [
    "a",
    "the",
    "two",
    "ten",
    "none",
    "dont",
    "joe's",
    "x-ray",
    "1,000",
    "1,,0",
    "3.5",
    "st.",
    ",",
    "?",
    "'s",
    " ",
]
WORDS = st.lists(st.sampled_from([*PIECES, "-", "/ ", "\n", "\t", "Yes", "."]), max_size=5).map("".join)
TEXTS = st.one_of(WORDS, st.text(max_size=12))
ANSWERS = st.one_of(
    st.lists(TEXTS, min_size=1, max_size=12),
    st.lists(st.sampled_from(["two", "2", "a/b", "a b", "Yes", "yes."]), min_size=10, max_size=10),
)


def written_out(metric: str, prediction: str, answers: list[str]) -> float:
    """The same rules without shortcuts: forms every leave-one-out set and applies every step as published."""

    def clean(text):
        return text.replace("\n", " ").replace("\t", " ").strip()

    def punctuation(text, rule):
        out = text
        for mark in ';/[]"{}()=+\\_-><@`,?!':
            if mark + " " in text or " " + mark in text or re.search(rule, text):
                out = out.replace(mark, "")
            else:
                out = out.replace(mark, " ")
        return re.compile(r"(?!<=\d)(\.)(?!\d)").sub("", out, re.UNICODE)

    def words(text):
        numbers = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
        digits = {"none": "0"} | {number: str(numbers.index(number)) for number in numbers}
        kept = [digits.get(word, word) for word in text.lower().split()]
        return " ".join(CONTRACTIONS.get(word, word) for word in kept if word not in ("a", "an", "the"))

    official, other = r"(\d)(\,)(\d)", r"(?<=\d)(\,)+(?=\d)"
    if metric == "vqa_official":
        answers, prediction = [clean(answer) for answer in answers], clean(prediction)
        if len(set(answers)) > 1:
            answers = [words(punctuation(answer, official)) for answer in answers]
            prediction = words(punctuation(prediction, official))
    else:

        def normalise(text):
            if metric == "textvqa":
                text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
                return words(punctuation(clean(text), other))
            if metric == "vqa_lmms":
                return words(punctuation(clean(text), other))
            return words(punctuation(text.replace("\n", " ").replace("\t", " ").lower().strip(), official))

        answers, prediction = [normalise(answer) for answer in answers], normalise(prediction)
    if metric == "vqa_simple":
        return min(1.0, answers.count(prediction) / 3)
    scores = []
    for left_out in range(len(answers)):
        others = answers[:left_out] + answers[left_out + 1 :]
        scores.append(min(1.0, others.count(prediction) / 3))
    return sum(scores) / len(scores)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(VQA_METRICS), ANSWERS, st.data())
def test_scores_equal_a_direct_implementation_of_the_rules(metric, answers, data):
    prediction = data.draw(st.one_of(TEXTS, st.sampled_from(answers)))
    assert score(metric, prediction, answers) == pytest.approx(written_out(metric, prediction, answers), abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(METRICS)), ANSWERS, TEXTS, st.randoms())
def test_scores_are_from_0_to_1_and_independent_of_the_order_of_answers(metric, answers, prediction, random):
    result = score(metric, prediction, answers)
    assert 0 <= result <= 1
    shuffled = list(answers)
    random.shuffle(shuffled)
    assert score(metric, prediction, shuffled) == result


@settings(max_examples=100, deadline=None)
@given(ANSWERS, TEXTS)
def test_a_scorer_repeats_the_result_of_score(answers, prediction):
    for metric in METRICS:
        scorer = Scorer(metric, answers)
        results = {scorer.score(prediction) for _ in range(3)}
        assert results == {score(metric, prediction, answers)}


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["cat", "dog", "cow"]), min_size=10, max_size=10), st.sampled_from(["cat", "dog"]))
def test_simple_is_never_below_leave_one_out_nor_more_than_a_tenth_above(answers, prediction):
    simple, textvqa = score("vqa_simple", prediction, answers), score("textvqa", prediction, answers)
    assert textvqa <= simple <= textvqa + 0.1 + 1e-12
