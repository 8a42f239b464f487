"""One request to an engine, checked: its image is decoded, its budget is in whole ms."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..data.datasets.image_input import ImageInput, image_pixels
from ..data.datasets.images import InlineImage
from ..data.errors import DatasetError, KnobctlError
from ..data.samples import Sample
from .answer import OnMiss

MIN_BUDGET_MS = 1.0
MAX_BUDGET_MS = 1e9


@dataclass(frozen=True)
class Request:
    """What an engine runs."""

    sample: Sample
    rgb: NDArray[np.uint8]
    budget_ms: float  # as received
    whole_ms: float  # what the controllers get
    max_new_tokens: int
    on_miss: OnMiss | None  # None: the controllers choose even if no setting is expected to meet the budget
    decode_ms: float  # decoding the image


def checked_request(
    image: ImageInput,
    question: str,
    budget_ms: float,
    *,
    task: str,
    limit: int,
    max_new_tokens: int | None,
    on_miss: OnMiss,
) -> Request:
    """Checks what a caller gave, and decodes the image.

    Args:
        limit: the task's limit of output tokens.

    Raises:
        KnobctlError: a part cannot be used.
    """
    whole_ms = _whole_ms(budget_ms)
    if not isinstance(question, str) or not question.strip():
        raise DatasetError("the question is empty: write one.")
    if max_new_tokens is not None:
        if max_new_tokens < 1:
            raise KnobctlError(f"an answer of {max_new_tokens} tokens is not possible: it has at least 1.")
        limit = min(limit, max_new_tokens)
    start = time.perf_counter()
    rgb = image_pixels(image)
    decode_ms = 1e3 * (time.perf_counter() - start)
    sample = Sample("the request", task, "test", question, (), "", InlineImage("", b""))
    return Request(sample, rgb, budget_ms, whole_ms, limit, checked_on_miss(on_miss), decode_ms)


def checked_on_miss(on_miss: OnMiss) -> OnMiss:
    """Returns it. Raises KnobctlError if it is neither."""
    if on_miss not in ("fastest", "refuse"):
        raise KnobctlError(f"on_miss is {on_miss!r}: it must be fastest or refuse.")
    return on_miss


def _whole_ms(budget_ms: float) -> float:
    """Returns a budget rounded down to whole ms. Raises KnobctlError for one that is none."""
    if not (math.isfinite(budget_ms) and MIN_BUDGET_MS <= budget_ms <= MAX_BUDGET_MS):
        raise KnobctlError(
            f"a latency budget of {budget_ms:g} ms is not possible: it must be from {MIN_BUDGET_MS:g} to "
            f"{MAX_BUDGET_MS:.0f}."
        )
    return float(math.floor(budget_ms))
