"""Stopwatches for the CPU and for CUDA, and the times of one request by stage. Independent of plans.

On CUDA the marks are events in the stream: nothing waits between blocks, and times are read when the request has ended.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from ...devices import single_thread
from ..execution.request_decoder import STEP, Mark
from .timed_request import DECIDE, HEAD, READ, START, VISION

Span = tuple[str | int, float]  # a mark's name, and the ms since the previous mark


class Stopwatch:
    """Collects marks; `spans` gives the times between them."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[tuple[str | int, Any]] = []

    def mark(self, name: str | int) -> None:
        """Records that `name` has just ended."""
        self._marks.append((name, time.perf_counter()))

    def mark_stages(self, name: str | int) -> None:
        """Records the end of a stage; ignores blocks."""
        if not isinstance(name, int):
            self.mark(name)

    def spans(self) -> list[Span]:
        """Returns the ms between each mark and the previous one; the first mark only starts the clock."""
        times = [moment for _, moment in self._marks]
        return [
            (name, 1e3 * (after - before))
            for (name, _), before, after in zip(self._marks[1:], times, times[1:], strict=False)
        ]


class CudaStopwatch(Stopwatch):
    """A stopwatch whose marks are events in the current stream."""

    def mark(self, name: str | int) -> None:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        self._marks.append((name, event))

    def spans(self) -> list[Span]:
        torch.cuda.synchronize(self._device)
        events = [event for _, event in self._marks]
        return [
            (name, float(before.elapsed_time(after)))
            for (name, _), before, after in zip(self._marks[1:], events, events[1:], strict=False)
        ]


def stopwatch(device: torch.device) -> Stopwatch:
    """Returns the device's stopwatch, after waiting for everything launched so far."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return CudaStopwatch(device)
    return Stopwatch(device)


@contextmanager
def quiet() -> Iterator[None]:
    """Runs the body under the conditions of a timing: on one thread, without garbage collection.

    Garbage is not collected beforehand: with the libraries loaded that takes 0.2 s, longer than most timed requests.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        with single_thread():
            yield
    finally:
        if was_enabled:
            gc.enable()


@dataclass
class RequestTimes:
    """The stages of one timed request, in ms."""

    vision_ms: float = 0.0
    prefill_ms: float = 0.0  # blocks, reading the latency token, and the head of the first token
    decode_ms: float = 0.0
    decide_ms: float = 0.0  # Stage2; 0 if the plan was known before
    read_ms: float = 0.0
    head_ms: float = 0.0
    prefill_block_ms: dict[int, float] = field(default_factory=dict)  # only if blocks were marked
    decode_block_ms: dict[int, list[float]] = field(default_factory=dict)  # by block, one entry per step
    step_overhead_ms: list[float] = field(default_factory=list)  # embedding, head and waiting, one entry per step

    @property
    def total_ms(self) -> float:
        return self.vision_ms + self.prefill_ms + self.decide_ms + self.decode_ms


def request_times(spans: list[Span]) -> RequestTimes:
    """Assigns the spans of one request to its stages."""
    times = RequestTimes()
    is_prompt = True
    for name, ms in spans:
        if name == VISION:
            times.vision_ms += ms
            continue
        if name == DECIDE:
            times.decide_ms += ms
            continue
        if is_prompt:
            times.prefill_ms += ms
        else:
            times.decode_ms += ms
        if name == READ:
            times.read_ms += ms
        elif name == HEAD:
            times.head_ms += ms
            is_prompt = False
        elif name == STEP:
            times.step_overhead_ms.append(ms)
        else:
            assert isinstance(name, int), f"{name} does not end a span of a request, nor does {START}"
            if is_prompt:
                times.prefill_block_ms[name] = ms
            else:
                times.decode_block_ms.setdefault(name, []).append(ms)
    return times


def timed(device: torch.device, run: Callable[[Mark], object], *, blocks: bool) -> RequestTimes:
    """Runs `run(mark)` once and returns its times; with `blocks`, those of each block too."""
    watch = stopwatch(device)
    run(watch.mark if blocks else watch.mark_stages)
    return request_times(watch.spans())
