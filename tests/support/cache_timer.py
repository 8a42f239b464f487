"""Timings of live requests, looked up in a cache, so that a live run agrees with replay."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from knobctl.data.cache.reader import Cache
from knobctl.data.progress import Progress
from knobctl.data.protocols import RequestTiming, RequestToTime, TimeRequests

Change = Callable[[RequestToTime, RequestTiming], RequestTiming]


def cache_timer(cache: Cache, change: Change | None = None, *, controllers_ms: float = 0.0) -> TimeRequests:
    """Returns a function that gives each request the cache's latency and answer, as `change` alters them."""

    def timing_of(request: RequestToTime) -> RequestTiming:
        cell = (cache.sample_index[request.sample.sample_id], cache.space.index(request.setting))
        own_ms = controllers_ms if request.controlled else 0.0
        latency_ms = float(cache.latency_ms_SX[cell]) + own_ms
        answer = cache.outcome_value("answer", *cell) if request.controlled else None
        runs_ms = tuple(ms + own_ms for ms in cache.outcome_value("latency_runs_ms", *cell) or ())
        timing = RequestTiming(request.setting, answer, latency_ms, runs_ms, own_ms)
        return timing if change is None else change(request, timing)

    def time_requests(requests: Sequence[RequestToTime], _progress: Progress) -> list[RequestTiming]:
        return [timing_of(request) for request in requests]

    return time_requests
