"""Runs requests one at a time on the engine, the earliest deadline first.

All methods are called from the event loop's thread; the engine runs in one thread of its own.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count

from ...data.errors import BudgetUnmet
from ..answer import Answer, Engine, OnMiss
from .budget import MIN_BUDGET_MS
from .image_source import RequestImage
from .refusal import Refusal


@dataclass(frozen=True)
class QueuedRequest:
    """What the engine needs, and when the request's time began."""

    image: RequestImage
    question: str
    budget_ms: float
    task: str
    max_new_tokens: int | None
    arrived_s: float  # by the queue's clock
    stream: bool

    @property
    def deadline_s(self) -> float:
        return self.arrived_s + self.budget_ms / 1000


@dataclass(frozen=True)
class Served:
    """An answer, and the time that its request waited."""

    answer: Answer
    queue_ms: float
    budget_ms: float  # of the request; the engine received what the queue had left of it

    @property
    def within_budget(self) -> bool:
        return self.queue_ms + self.answer.latency_ms.total <= self.budget_ms


class Cancelled(Exception):
    """Ends an answer whose client is gone."""


class Ticket:
    """A request in the queue: its text as it is made, then its result."""

    def __init__(self, request: QueuedRequest) -> None:
        self.request = request
        self.result: asyncio.Future[Served] = asyncio.get_running_loop().create_future()
        self.pieces: asyncio.Queue[str | None] = asyncio.Queue()  # of a stream; None after the last
        self._loop = asyncio.get_running_loop()

    def cancel(self) -> None:
        """Drops the request if it waits, and ends a stream that is being answered."""
        self.result.cancel()

    def on_token(self, piece: str) -> None:
        """Receives a piece of text in the engine's thread."""
        if self.result.cancelled():
            raise Cancelled
        self._loop.call_soon_threadsafe(self.pieces.put_nowait, piece)

    def end(self, outcome: Served | BaseException) -> None:
        """Sets the result, unless the request has been cancelled."""
        if not self.result.done():
            if isinstance(outcome, BaseException):
                self.result.set_exception(outcome)
            else:
                self.result.set_result(outcome)
        self.pieces.put_nowait(None)


class RequestQueue:
    """The requests of a server that are being read, waiting, or being answered.

    Args:
        engine: answers; used by one thread.
        max_queue: requests that may be open besides the one being answered.
        on_miss: refuse a request whose remaining budget no setting is expected to meet, or answer it with the fastest.
        clock: seconds.
    """

    def __init__(self, engine: Engine, max_queue: int, on_miss: OnMiss, clock: Callable[[], float]) -> None:
        self.draining = False
        self.open_requests = 0
        self.clock = clock
        self._engine, self._max_queue, self._on_miss = engine, max_queue, on_miss
        self._heap: list[tuple[float, int, Ticket]] = []
        self._order = count()
        self._filled = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "engine")

    def enter(self) -> None:
        """Takes a place for a request that is about to be read. Raises Refusal: the queue is full, or draining."""
        if self.draining:
            raise draining()
        if self.open_requests > self._max_queue:
            raise Refusal(
                429,
                f"{self.open_requests} requests are open, and the queue is full: try again later.",
                code="queue_full",
                outcome="refused_queue",
                headers={"retry-after": "1"},
            )
        self.open_requests += 1

    def leave(self) -> None:
        """Gives back the place of a request that `submit` did not receive."""
        self.open_requests -= 1

    def submit(self, request: QueuedRequest) -> Ticket:
        """Queues a request that has a place; the queue gives the place back when the request has ended."""
        ticket = Ticket(request)
        heapq.heappush(self._heap, (request.deadline_s, next(self._order), ticket))
        self._filled.set()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Drops a request whose client is gone. A stream that is being answered ends with its next piece of text."""
        ticket.result.cancel()
        waiting = [entry for entry in self._heap if entry[2] is not ticket]
        if len(waiting) < len(self._heap):
            self._heap = waiting
            heapq.heapify(self._heap)
            self.leave()

    def abandon(self) -> None:
        """Refuses all requests that wait."""
        for _, _, ticket in self._heap:
            ticket.end(draining())
            self.leave()
        self._heap.clear()

    async def run(self) -> None:
        """Answers requests until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._filled.wait()
            if not self._heap:
                self._filled.clear()
                continue
            ticket = heapq.heappop(self._heap)[2]
            answering = loop.run_in_executor(self._thread, self._answer, ticket)
            await asyncio.wait({answering})
            ticket.end(answering.exception() or answering.result())
            self.leave()

    def close(self) -> None:
        """Waits for the answer in progress and ends the engine's thread."""
        self._thread.shutdown()

    def _answer(self, ticket: Ticket) -> Served:
        """Answers a request in the engine's thread, with what the queue has left of its budget."""
        request, engine = ticket.request, self._engine
        queue_ms = (self.clock() - request.arrived_s) * 1000
        left_ms = request.budget_ms - queue_ms
        if self._on_miss == "refuse":
            fastest_ms = engine.fastest_expected_ms(request.question, request.image.size, task=request.task)
            if left_ms < max(fastest_ms or 0.0, MIN_BUDGET_MS):
                raise BudgetUnmet(_why(left_ms, queue_ms, fastest_ms))
        answer = engine.answer(
            request.image.data,
            request.question,
            max(left_ms, MIN_BUDGET_MS),
            task=request.task,
            max_new_tokens=request.max_new_tokens,
            on_miss=self._on_miss,
            on_token=ticket.on_token if request.stream else None,
        )
        return Served(answer, queue_ms, request.budget_ms)


def draining() -> Refusal:
    """Returns the refusal of a server that is shutting down."""
    return Refusal(503, "the server is shutting down.", code="draining", outcome="refused_draining")


def _why(left_ms: float, queue_ms: float, fastest_ms: float | None) -> str:
    needed = "no setting can be that fast" if fastest_ms is None else f"the fastest setting takes {fastest_ms:.1f} ms"
    return f"{max(left_ms, 0.0):.1f} ms of the budget are left after {queue_ms:.1f} ms in the queue, and {needed}."
