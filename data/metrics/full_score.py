"""Checks whether a metric can give full scores on a dataset's reference answers, and words the warning."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from .scores import Scorer, get_metric


class FullScores(NamedTuple):
    """What the best possible predictions score on a set of questions, each with at least one reference answer."""

    questions: int
    too_few_answers: int  # questions with fewer answers than a full score needs
    unreachable: int  # questions on which no prediction scores 1, because too few answers exist or agree
    highest_mean: float  # mean accuracy of the best predictions, 0 to 1


def full_scores(metric: str, answers: Iterable[Sequence[str]]) -> FullScores:
    """Returns the best possible scores under `metric`, given each question's answers, if it has any."""
    needed = get_metric(metric).full_score_answers
    questions = too_few = unreachable = 0
    total = 0.0
    for texts in answers:
        if not texts:
            continue
        # Normalisation only makes more answers equal, so a question with enough equal ones needs no scoring.
        enough = max(Counter(texts).values()) >= needed
        best = 1.0 if enough else Scorer(metric, texts).best_score
        questions += 1
        too_few += len(texts) < needed
        unreachable += best < 1.0
        total += best
    return FullScores(questions, too_few, unreachable, total / max(questions, 1))


def full_score_warning(
    dataset: str, metric: str, answers: Iterable[Sequence[str]], *, command: str = "--metric {dataset}=exact_match"
) -> str | None:
    """Returns a warning when `metric` does not suit a dataset's answers, else None.

    It does not when a question has too few answers for a full score, or when too few agree on most questions, because
    the answers are alternatives instead of votes. `command` is the command that recomputes accuracy, for the message.
    """
    found = full_scores(metric, answers)
    needed = get_metric(metric).full_score_answers
    if found.too_few_answers:
        reason = f"{found.too_few_answers} of {found.questions} questions have fewer than {needed} answers"
    elif 2 * found.unreachable > found.questions:
        reason = f"on {found.unreachable} of {found.questions} questions fewer than {needed} answers agree"
    else:
        return None
    warning = (
        f"dataset `{dataset}`: {reason}, so `{metric}` cannot give them a full score (perfect predictions would have a "
        f"mean accuracy of {found.highest_mean:.3f} on the dataset)"
    )
    if (
        2 * found.unreachable <= found.questions
    ):  # the metric suits most of the dataset, so another one would not suit it
        return warning
    return f"{warning}: `{command.format(dataset=dataset)}` accepts any of the answers"
