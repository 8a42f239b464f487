"""The latency of live requests: each is run from end to end by the engine, controllers included.

The replayed decisions ignore whether a setting is expected to meet the budget, and their budgets need not be whole ms,
so the engine runs these requests without its rule for missed budgets and without rounding.
"""

from __future__ import annotations

import math
import random
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import median

from ..data.errors import KnobctlError
from ..data.progress import Progress
from ..data.protocols import LEAST_RUNS, RequestTiming, RequestToTime
from ..precompute.latency.block_times import TimedPlan, measure_whole
from ..precompute.latency.slow_spells import RETAKES, Pace
from .engine import Engine


@dataclass
class _Timed:
    """One timing, and how long its request was expected to take."""

    request: RequestToTime
    kind: Hashable
    expected_ms: float | None
    timing: RequestTiming

    @property
    def ratio(self) -> float | None:
        """Measured over expected latency, which makes requests under different settings comparable."""
        return None if self.expected_ms is None else self.timing.latency_ms / self.expected_ms


class LiveTimer:
    """Implements `data.protocols.TimeRequests`.

    Args:
        runs: runs of each request, whose median is its latency; at least `LEAST_RUNS`.
    """

    def __init__(self, engine: Engine, *, runs: int = LEAST_RUNS, seed: int = 0) -> None:
        assert runs >= LEAST_RUNS, runs
        self._engine, self._runs, self._seed = engine, runs, seed

    def __call__(self, requests: Sequence[RequestToTime], progress: Progress) -> list[RequestTiming]:
        """Times every request; then again those that a slow spell of the machine covered, keeping the faster timing."""
        timed: dict[Hashable, _Timed] = {}
        pace, slowed = Pace(), []
        keys = [_key(request) for request in requests]
        with progress.steps("timing", len(requests)) as advance:
            for key, request in zip(keys, requests, strict=True):
                if key not in timed:
                    one = timed[key] = self._time(request)
                    if one.ratio is not None and pace.note(one.kind, one.ratio):
                        slowed.append(one)
                advance()
        for _ in range(RETAKES):
            slowed = [one for one in slowed if pace.may_retake() and self._is_still_slow(one, pace)]
        return [timed[key].timing for key in keys]

    def _is_still_slow(self, one: _Timed, pace: Pace) -> bool:
        """Times a request again."""
        again = self._time(one.request).timing
        if again.latency_ms < one.timing.latency_ms:
            one.timing = again
        return one.ratio is not None and pace.is_slowed(one.kind, one.ratio)

    def _time(self, request: RequestToTime) -> _Timed:
        return self._time_engine(request) if request.controlled else self._time_setting(request)

    def _time_engine(self, request: RequestToTime) -> _Timed:
        """Times a request whose setting the controllers choose."""
        rgb = self._engine.knobs.pixels(request.sample)
        # The first run is a warm-up, as before every other timing.
        first, *made = [
            self._engine.answer_as_replayed(request.sample, rgb, request.budget_ms) for _ in range(self._runs + 1)
        ]
        totals_ms = tuple(one.latency_ms.total for one in made)
        timing = RequestTiming(
            first.setting,
            first.text,
            median(totals_ms),
            totals_ms,
            median(one.latency_ms.controllers for one in made),
        )
        return _Timed(request, (request.sample.dataset, first.output_tokens), first.expected_latency_ms, timing)

    def _time_setting(self, request: RequestToTime) -> _Timed:
        """Times a request under a given setting, without controllers."""
        knobs, sample, setting = self._engine.knobs, request.sample, request.setting
        if request.output_tokens is None:
            raise KnobctlError(
                f"{sample.sample_id}: the number of tokens of its answer is not known, so it cannot be timed."
            )
        rgb = knobs.pixels(sample)
        prepared = knobs.prepare(sample, rgb, knobs.view(rgb, setting.tier))
        plan = TimedPlan(knobs.plans[setting], setting.insertion_position or 0, request.output_tokens)
        (latency,) = measure_whole(knobs, prepared, [plan], runs=self._runs, draw=random.Random(self._seed))
        timing = RequestTiming(setting, None, latency.latency_ms, latency.latency_runs_ms, 0.0)
        height, width = rgb.shape[:2]
        expected_ms_X = self._engine.expected_ms(sample.question, (width, height), task=sample.dataset)
        expected_ms = float(expected_ms_X[knobs.space.index(setting)])
        known_ms = expected_ms if math.isfinite(expected_ms) else None
        return _Timed(request, (sample.dataset, request.output_tokens), known_ms, timing)


def _key(request: RequestToTime) -> Hashable:
    choice = request.budget_ms if request.controlled else request.setting
    return request.sample.sample_id, request.controlled, choice
