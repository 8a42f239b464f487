"""Whether a metric can give full scores on a dataset's reference answers: the one home of the check and its words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from .scores import Scorer, get_metric


class FullScores(NamedTuple):
    """What the best possible predictions would score on some questions, each of which has at least one answer."""

    questions: int
    too_few_answers: int  # questions with fewer answers than a full score needs
    unreachable: int  # questions on which no prediction scores 1: too few answers, or too few that agree
    highest_mean: float  # mean accuracy of the best predictions, 0 to 1


def full_scores(metric: str, answers: Iterable[Sequence[str]]) -> FullScores:
    """Returns how far predictions can get under `metric`; questions without answers are left out."""
    needed = get_metric(metric).full_score_answers
    questions = too_few = unreachable = 0
    total = 0.0
    for texts in answers:
        if not texts:
            continue
        # Normalising only makes more texts equal, so a question with enough equal texts needs no scoring.
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
    """Returns a warning where `metric` does not suit a dataset's answers; None where it does.

    It does not when a question has too few answers for a full score, or when on most questions too few agree, as when
    answers are alternatives instead of votes. `command` is what recomputes accuracy, for the message.
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
    if 2 * found.unreachable <= found.questions:  # the metric suits most of the dataset: another one would not
        return warning
    return f"{warning}: `{command.format(dataset=dataset)}` counts any of the answers as right"
