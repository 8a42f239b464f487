"""The protocol that the cache and the live model both answer, so that `--live` only swaps the object."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from .samples import Sample

Handle = TypeVar("Handle")

LEAST_RUNS = 3  # timed runs of a live request: the fewest whose median one stalled run does not decide


@dataclass(frozen=True)
class Outcome:
    """Answer, accuracy and latency of one sample under one setting. What was not measured is None, never 0.

    `latency_ms` is the median of `latency_runs_ms` where several runs were timed.
    """

    answer: str | None
    accuracy: float
    latency_ms: float | None
    output_tokens: int | None = None
    vision_tokens: int | None = None
    vision_ms: float | None = None
    prefill_ms: float | None = None
    decode_ms: float | None = None
    latency_runs_ms: tuple[float, ...] = ()


class Executor(Protocol, Generic[Handle]):
    """Runs one sample in two calls, with Stage2's decision between them."""

    def session(self, budgets_ms: Sequence[float]) -> AbstractContextManager[None]:
        """Returns the conditions under which requests with these budgets run, and the policies' own calls are timed."""

    def language_feature(self, sample: Sample) -> NDArray[np.float32]:
        """Returns the mean of the question's word embeddings, [d_model]: what Stage1 sees."""

    def latency_token(
        self, sample: Sample, tier: str, insertion_position: int, budget_ms: float
    ) -> tuple[NDArray[np.float16], Handle]:
        """Returns the latency token [d_model] and what `finish` needs to go on from there."""

    def finish(self, handle: Handle, top_k: int, num_blocks: int) -> Outcome:
        """Runs the rest under (top_k, num_blocks) and returns the outcome."""
