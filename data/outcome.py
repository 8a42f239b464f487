"""The outcome of one sample under one setting: one row of `outcomes`, without its key."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """Answer, accuracy and latency of one sample under one setting. What was not measured is None, never 0.

    The fields are the columns of `data/schema.py`. `latency_ms` and the three stages are medians over the timed runs,
    of which `latency_runs_ms` holds the totals and `latency_std_ms` the standard deviation.
    """

    answer: str | None
    accuracy: float
    latency_ms: float | None
    output_tokens: int | None = None
    vision_tokens: int | None = None
    latency_std_ms: float | None = None  # None also with a single run
    vision_ms: float | None = None
    prefill_ms: float | None = None
    decode_ms: float | None = None
    latency_runs_ms: tuple[float, ...] = ()
    outcome_source: str | None = None  # measured or imported
