"""Clocks for the CPU and for CUDA, and what a timed request took. Knows nothing of plans.

On CUDA the marks are events in the stream: nothing waits between blocks, and times are read when the request is over.
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
from .timed_request import HEAD, READ, START, VISION

Span = tuple[str | int, float]  # what ended, and the ms since the mark before


class Stopwatch:
    """Collects marks; `spans` says what lay between them."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[tuple[str | int, Any]] = []

    def mark(self, name: str | int) -> None:
        """Notes that `name` has just ended."""
        self._marks.append((name, time.perf_counter()))

    def mark_stages(self, name: str | int) -> None:
        """Notes the end of a stage; blocks are not marked."""
        if not isinstance(name, int):
            self.mark(name)

    def spans(self) -> list[Span]:
        """Returns the ms between each mark and the one before; the first mark only starts the clock."""
        times = [moment for _, moment in self._marks]
        return [
            (name, 1e3 * (after - before))
            for (name, _), before, after in zip(self._marks[1:], times, times[1:], strict=False)
        ]


class CudaStopwatch(Stopwatch):
    """The same with events in the current stream."""

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
    """Returns the device's stopwatch, after waiting for whatever was launched before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return CudaStopwatch(device)
    return Stopwatch(device)


@contextmanager
def quiet() -> Iterator[None]:
    """Runs the body as timings are taken: one thread, and no garbage collection in between.

    Nothing is collected beforehand: with the libraries loaded that takes 0.2 s, more than most of what is timed.
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
    prefill_ms: float = 0.0  # blocks, the read at the insertion position, and the head of the first token
    decode_ms: float = 0.0
    read_ms: float = 0.0
    head_ms: float = 0.0
    prefill_block_ms: dict[int, float] = field(default_factory=dict)  # only where blocks were marked
    decode_block_ms: dict[int, list[float]] = field(default_factory=dict)  # by block, one entry a step
    step_overhead_ms: list[float] = field(default_factory=list)  # embedding, head and waiting, one entry a step

    @property
    def total_ms(self) -> float:
        return self.vision_ms + self.prefill_ms + self.decode_ms


def request_times(spans: list[Span]) -> RequestTimes:
    """Sorts the spans of one request into its stages."""
    times = RequestTimes()
    is_prompt = True
    for name, ms in spans:
        if name == VISION:
            times.vision_ms += ms
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
            assert isinstance(name, int), f"{name} is no mark of a request, nor is {START} a span's end"
            if is_prompt:
                times.prefill_block_ms[name] = ms
            else:
                times.decode_block_ms.setdefault(name, []).append(ms)
    return times


def timed(device: torch.device, run: Callable[[Mark], object], *, blocks: bool) -> RequestTimes:
    """Runs `run(mark)` once and returns what it took; `blocks` also marks between blocks."""
    watch = stopwatch(device)
    run(watch.mark if blocks else watch.mark_stages)
    return request_times(watch.spans())
