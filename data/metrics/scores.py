"""Accuracy of one prediction against a question's reference answers, 0 to 1.

The four VQA metrics differ in how they normalise text and how they score matches; docs/reference/metrics.md has a table
of both. `exact_match` is for datasets with one right answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from ..errors import DatasetError
from .normalise import LMMS_COMMA, clean, map_words, strip_punctuation, tokenize

_REMEMBERED = (
    1 << 16
)  # cache size: predictions repeat, since a sample has hundreds of settings and few distinct answers


def leave_one_out(matches: int, answers: int) -> float:
    """Returns the mean, over each answer left out in turn, of min(1, matches among the others / 3).

    The official code leaves out an answer by comparing objects, which equals leaving out by position, as here, unless
    two have the same `answer_id`. A single integer division makes 0.3, 0.6 and 0.9 exact.
    """
    left_out_matches = matches * min(3, matches - 1)
    left_out_differs = (answers - matches) * min(3, matches)
    return (left_out_matches + left_out_differs) / (3 * answers)


def third_of_matches(matches: int, answers: int) -> float:  # noqa: ARG001 - one signature for all rules
    """Returns min(1, matches / 3)."""
    return min(3, matches) / 3


def any_match(matches: int, answers: int) -> float:  # noqa: ARG001 - one signature for all rules
    """Returns 1 if any answer matches, else 0."""
    return float(matches > 0)


@lru_cache(_REMEMBERED)
def _official(text: str) -> str:
    return map_words(strip_punctuation(clean(text)))


@lru_cache(_REMEMBERED)
def _evalai(text: str) -> str:
    return map_words(strip_punctuation(clean(tokenize(text)), LMMS_COMMA))


@lru_cache(_REMEMBERED)
def _lmms(text: str) -> str:
    return map_words(strip_punctuation(clean(text), LMMS_COMMA))


@lru_cache(_REMEMBERED)
def _lower_first(text: str) -> str:
    return map_words(strip_punctuation(clean(text.lower())))


def _lower_words(text: str) -> str:
    return " ".join(text.lower().split())


@dataclass(frozen=True)
class Metric:
    """How text is normalised and how matches are scored."""

    name: str
    summary: str
    normalise: Callable[[str], str]
    score_of_matches: Callable[[int, int], float]  # (matches, answers) -> 0 to 1
    full_score_answers: int  # equal answers that a question needs for a prediction to score 1
    blank_matches: bool = True  # an empty prediction matches an empty answer, as in the VQA evaluators
    keeps_unanimous_text: bool = False  # nothing is normalised when all answers are the same text


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("vqa_official", "official VQA v2 evaluation", _official, leave_one_out, 4, keeps_unanimous_text=True),
        Metric("textvqa", "EvalAI / TextVQA evaluation (mmf, lmms-eval)", _evalai, leave_one_out, 4),
        Metric("vqa_lmms", "lmms-eval's VQA v2", _lmms, leave_one_out, 4),
        Metric("vqa_simple", "Molmo's own evaluation: matches / 3", _lower_first, third_of_matches, 3),
        Metric("exact_match", "equal to any answer, ignoring case and spacing", _lower_words, any_match, 1, False),
    )
}


def get_metric(name: str) -> Metric:
    """Returns the metric. Raises DatasetError, listing the known names, for an unknown one."""
    if name not in METRICS:
        raise DatasetError(f"metric `{name}` is unknown: choose one of {', '.join(METRICS)}.")
    return METRICS[name]


class Scorer:
    """Scores predictions against one question's answers, which are normalised once.

    Raises DatasetError for an unknown metric and for no answers.
    """

    def __init__(self, metric: str, answers: Sequence[str]) -> None:
        self.metric = get_metric(metric)
        if isinstance(answers, str):
            raise DatasetError(f"answers must be a list of strings, not the string {answers!r}.")
        if not answers:
            raise DatasetError("a question without reference answers cannot be scored.")
        self.answers = tuple(answers)
        self._normalise = self.metric.normalise
        if self.metric.keeps_unanimous_text and len({clean(answer) for answer in self.answers}) == 1:
            self._normalise = clean
        self._matches = Counter(map(self._normalise, self.answers))
        if not self.metric.blank_matches:
            self._matches.pop("", None)

    @property
    def best_score(self) -> float:
        """Accuracy of the best possible prediction, 0 to 1; below 1 when too few answers agree."""
        return max(self.metric.score_of_matches(count, len(self.answers)) for count in self._matches.values())

    def score(self, prediction: str) -> float:
        """Returns the accuracy of `prediction`, 0 to 1."""
        matches = self._matches[self._normalise(prediction)]
        return self.metric.score_of_matches(matches, len(self.answers))


def score(metric: str, prediction: str, answers: Sequence[str]) -> float:
    """Returns the accuracy of one prediction, 0 to 1. For many against the same answers, use a `Scorer`."""
    return Scorer(metric, answers).score(prediction)
