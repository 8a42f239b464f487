"""How large a request is, in views and tokens, and how long each setting is expected to take for it.

What depends on image size or token counts alone is computed once.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..controllers.expected_latency import ExpectedLatency
from ..data.tasks import Task
from ..precompute.execution.knob_model import KnobModel, view_in_tier
from ..precompute.models.backbone import View

KEPT = 4096  # results of each kind: a server may get a new image size or question length with every request


class Expected(NamedTuple):
    """Expected latencies of one request."""

    ms_X: NDArray[np.float64]  # NaN: not known
    fastest_ms: float


class RequestSizes:
    """Views, token counts and expected latencies of requests to a model with its knobs."""

    def __init__(self, knobs: KnobModel, tasks: Mapping[str, Task], expected_latency: ExpectedLatency) -> None:
        self._knobs, self._tasks, self._expected_latency = knobs, tasks, expected_latency
        self.views = lru_cache(KEPT)(self._views)
        self._by_size: dict[tuple[str, tuple[View, ...], int], Expected] = {}

    def expected(self, question: str, task: str, views: tuple[View, ...]) -> Expected:
        """Returns the expected latency of every setting for an image with these views by tier."""
        model, style = self._knobs.model, self._tasks[task].style
        text_tokens = model.prompt_size(question, style, views[0]).text_tokens
        key = (task, views, text_tokens)
        if key not in self._by_size:
            if len(self._by_size) >= KEPT:
                self._by_size.clear()
            vision_T = [self.vision_tokens(question, task, view) for view in views]
            ms_X = self._expected_latency.expected_ms((task,), np.array([vision_T]), np.array([text_tokens]))[0]
            self._by_size[key] = Expected(ms_X, float(np.nanmin(ms_X)))
        return self._by_size[key]

    def vision_tokens(self, question: str, task: str, view: View) -> int:
        """Returns the visual tokens of an image presented like this."""
        return self._knobs.model.prompt_size(question, self._tasks[task].style, view).vision_tokens

    def _views(self, height: int, width: int) -> tuple[View, ...]:
        """Returns how each tier presents an image of this size in pixels."""
        space = self._knobs.space
        return tuple(view_in_tier(self._knobs.model, space, tier, height, width) for tier in space.tiers)
