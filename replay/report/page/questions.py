"""The questions on which controllers gain and lose most against the budget-only table."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ...evaluation.request_stats import STATS, RequestSet, request_stats
from ..figures.source import ReportSource
from .headline import FIXED
from .thumbnails import Thumbnail

MOST = 12  # of each kind
MAX_TEXT = 240  # characters of a question or an answer


class Outcome(NamedTuple):
    """What one policy did with a question."""

    setting: str
    answer: str | None  # None: the cache keeps no answers
    accuracy: float
    latency_ms: float
    in_time: bool


class Question(NamedTuple):
    """A question under the budget at which the two policies differ most."""

    sample_id: str
    dataset: str
    question: str | None
    answers: tuple[str, ...]
    difference: float  # in reward, mean over all budgets, controllers minus table
    budget_ms: float
    controllers: Outcome
    fixed: Outcome
    image: Thumbnail | None


class Questions(NamedTuple):
    """The questions of a page."""

    policy: str
    gains: tuple[Question, ...]  # largest first
    losses: tuple[Question, ...]  # largest first
    n_gained: int  # of all questions
    n_lost: int
    n_equal: int


def no_image(sample: int) -> None:
    """Stands for the reader of images where none are shown."""
    del sample


def questions(source: ReportSource, image_of: Callable[[int], Thumbnail | None]) -> Questions | None:
    """Returns the questions of the first subject; None without controllers or without the budget-only table.

    Args:
        image_of: returns a sample's image by its index in the cache, None if it is not available.
    """
    report, found = source.report, source.report.decisions
    subjects = [found.choosers(name)[0] for name in report.subjects]  # one seed, where the subject is a mean
    if not subjects or FIXED not in found.chosen:
        return None
    policy = subjects[0]
    requests = RequestSet.of(found.tables, found.sample_N, found.budget_M)
    reward = STATS.index("reward")
    gain_NM = request_stats(requests, found.chosen[policy])[:, :, reward]
    gain_NM = gain_NM - request_stats(requests, found.chosen[FIXED])[:, :, reward]
    gain_N = gain_NM.mean(axis=1)
    order = np.argsort(-gain_N, kind="stable")
    gained, lost = order[gain_N[order] > 0], order[::-1][gain_N[order[::-1]] < 0]

    def shown(row: int) -> Question:
        return _question(source, policy, row, gain_NM, image_of)

    return Questions(
        policy,
        tuple(shown(int(row)) for row in gained[:MOST]),
        tuple(shown(int(row)) for row in lost[:MOST]),
        len(gained),
        len(lost),
        len(gain_N) - len(gained) - len(lost),
    )


def _question(
    source: ReportSource, policy: str, row: int, gain_NM: np.ndarray, image_of: Callable[[int], Thumbnail | None]
) -> Question:
    cache, found = source.cache, source.report.decisions
    sample = int(found.sample_N[row])
    place = int(np.abs(gain_NM[row]).argmax())
    budget_ms = float(source.report.budgets_ms[place])
    record = cache.samples.row(sample, named=True)
    question = record.get("question")
    return Question(
        cache.sample_ids[sample],
        record["dataset"],
        None if question is None else cut(question),
        tuple(cut(answer) for answer in dict.fromkeys(record.get("answers") or ()) if answer is not None)[:5],
        float(gain_NM[row].mean()),
        budget_ms,
        _outcome(source, sample, int(found.chosen[policy][row, place]), budget_ms),
        _outcome(source, sample, int(found.chosen[FIXED][row, place]), budget_ms),
        image_of(sample),
    )


def _outcome(source: ReportSource, sample: int, setting: int, budget_ms: float) -> Outcome:
    cache = source.cache
    answer = cache.outcome_value("answer", sample, setting)
    latency_ms = cache.latency_ms_SX[sample, setting]
    return Outcome(
        str(cache.space.settings[setting]),
        None if answer is None else cut(str(answer)),
        float(cache.accuracy_SX[sample, setting]),
        float(latency_ms),
        bool(latency_ms <= np.float32(budget_ms)),
    )


def cut(text: str) -> str:
    """Returns text that fits a card."""
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 1]}…"
