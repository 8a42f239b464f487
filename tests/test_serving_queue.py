"""The queue: earliest deadline first, one at a time, time in the queue counts."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from knobctl.data.errors import BudgetUnmet
from knobctl.serving.http.image_source import RequestImage
from knobctl.serving.http.refusal import Refusal
from knobctl.serving.http.request_queue import QueuedRequest, RequestQueue, Ticket
from knobctl.tests.support.chat_requests import png
from knobctl.tests.support.fake_engine import FASTEST_MS, FakeEngine


class Gate:
    """Holds the engine at every question that contains `hold` until it is opened; keeps a clock that tests set."""

    def __init__(self) -> None:
        self.open, self.reached = threading.Event(), threading.Event()
        self.now_s = 100.0

    def clock(self) -> float:
        return self.now_s

    def __call__(self, question: str) -> None:
        if "hold" in question:
            self.reached.set()
            assert self.open.wait(10)

    async def wait(self) -> None:
        await asyncio.to_thread(self.reached.wait, 10)


@asynccontextmanager
async def running_queue(engine: FakeEngine, gate: Gate, **options: Any) -> AsyncIterator[RequestQueue]:
    queue = RequestQueue(engine, **{"max_queue": 10, "on_miss": "fastest", "clock": gate.clock, **options})
    running = asyncio.create_task(queue.run())
    try:
        yield queue
    finally:
        gate.open.set()
        running.cancel()
        queue.close()


def submit(queue: RequestQueue, question: str, budget_ms: float, *, stream: bool = False) -> Ticket:
    queue.enter()
    image = RequestImage(png(), (8, 6))
    return queue.submit(QueuedRequest(image, question, budget_ms, "easy_vqa", None, queue.clock(), stream))


def run(body: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(body, 20))


def test_the_earliest_deadline_is_answered_first():
    async def body() -> None:
        gate = Gate()
        engine = FakeEngine(before_answer=gate)
        async with running_queue(engine, gate) as queue:
            tickets = [submit(queue, "hold", 1000)]
            await gate.wait()
            tickets += [
                submit(queue, name, budget) for name, budget in (("late", 900), ("early", 300), ("middle", 500))
            ]
            gate.open.set()
            await asyncio.gather(*(ticket.result for ticket in tickets))
        assert [question for question, _ in engine.answered] == ["hold", "early", "middle", "late"]

    run(body())


def test_the_engine_gets_what_the_queue_has_left_of_the_budget():
    async def body() -> None:
        gate = Gate()
        engine = FakeEngine(before_answer=gate)
        async with running_queue(engine, gate) as queue:
            submit(queue, "hold", 1000)
            await gate.wait()
            ticket = submit(queue, "next", 40)
            gate.now_s += 0.025
            gate.open.set()
            served = await ticket.result
        assert served.queue_ms == pytest.approx(25)
        assert engine.answered[1][1] == pytest.approx(15)
        assert served.answer.setting.tier == "medium"  # 12 ms fit into 15, 20 ms do not
        assert served.within_budget

    run(body())


def test_a_request_that_can_no_longer_be_met_is_refused_or_answered_with_the_fastest_setting():
    async def body(on_miss: str) -> Any:
        gate = Gate()
        engine = FakeEngine(before_answer=gate)
        async with running_queue(engine, gate, on_miss=on_miss) as queue:
            submit(queue, "hold", 1000)
            await gate.wait()
            ticket = submit(queue, "next", 20)
            gate.now_s += 0.020 - FASTEST_MS / 1000 + 0.001
            gate.open.set()
            return await asyncio.wait_for(asyncio.gather(ticket.result, return_exceptions=True), 10), engine

    (refused,), engine = asyncio.run(body("refuse"))
    assert isinstance(refused, BudgetUnmet)
    assert "3.0 ms of the budget are left after 17.0 ms in the queue" in str(refused)
    assert [question for question, _ in engine.answered] == ["hold"]
    (served,), _ = asyncio.run(body("fastest"))
    assert (served.answer.setting.tier, served.answer.setting.num_blocks) == ("low", 12)
    assert not served.within_budget


def test_a_full_queue_refuses_and_has_room_again_when_a_client_goes():
    async def body() -> None:
        gate = Gate()
        async with running_queue(FakeEngine(before_answer=gate), gate, max_queue=1) as queue:
            submit(queue, "hold", 1000)
            await gate.wait()
            waiting = submit(queue, "waiting", 1000)
            with pytest.raises(Refusal) as caught:
                queue.enter()
            assert (caught.value.status, caught.value.code) == (429, "queue_full")
            queue.cancel(waiting)
            assert queue.open_requests == 1
            served = submit(queue, "other", 1000)
            gate.open.set()
            assert (await served.result).answer.text
        assert queue.open_requests == 0

    run(body())


def test_a_request_whose_client_is_gone_never_reaches_the_engine():
    async def body() -> None:
        gate = Gate()
        engine = FakeEngine(before_answer=gate)
        async with running_queue(engine, gate) as queue:
            submit(queue, "hold", 1000)
            await gate.wait()
            queue.cancel(submit(queue, "gone", 10))
            last = submit(queue, "last", 1000)
            gate.open.set()
            await last.result
        assert [question for question, _ in engine.answered] == ["hold", "last"]

    run(body())


def test_a_stream_ends_early_when_its_client_goes():
    async def body() -> None:
        gate = Gate()
        engine = FakeEngine(sleep=True, scale=20)  # a piece takes more than 20 ms
        async with running_queue(engine, gate) as queue:
            ticket = submit(queue, "one two three four five six", 300, stream=True)
            assert await ticket.pieces.get() is not None
            queue.cancel(ticket)
            pieces = 0
            while await ticket.pieces.get() is not None:
                pieces += 1
            assert pieces < 4
            assert (await submit(queue, "next", 1000).result).answer.text

    run(body())


def test_an_error_ends_one_request_and_not_the_queue():
    async def body() -> None:
        gate = Gate()

        def fail(question: str) -> None:
            if question == "bad":
                raise RuntimeError("a bug")

        async with running_queue(FakeEngine(before_answer=fail), gate) as queue:
            bad, good = submit(queue, "bad", 100), submit(queue, "good", 200)
            with pytest.raises(RuntimeError):
                await bad.result
            assert (await good.result).answer.text
        assert queue.open_requests == 0

    run(body())


def test_draining_refuses_new_requests_and_abandon_those_that_wait():
    async def body() -> None:
        gate = Gate()
        async with running_queue(FakeEngine(before_answer=gate), gate) as queue:
            running = submit(queue, "hold", 1000)
            await gate.wait()
            waiting = submit(queue, "waiting", 1000)
            queue.draining = True
            with pytest.raises(Refusal) as caught:
                queue.enter()
            assert caught.value.status == 503
            queue.abandon()
            with pytest.raises(Refusal):
                await waiting.result
            gate.open.set()
            assert (await running.result).answer.text

    run(body())
