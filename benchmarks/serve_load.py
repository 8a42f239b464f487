"""Loads the server with concurrent OpenAI clients: python benchmarks/serve_load.py

Starts the server with an engine that sleeps instead of running a model, so this measures the server: queueing, refusing
and replying. Client retries are off. Checks that every request was answered or refused exactly once, by the clients'
count and by the server's metrics, and that every text and setting equals `Engine.answer`'s for the budget that the
queue had left. Prints one row for each number of clients.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import click
import numpy as np
import openai

from knobctl.benchmarks.tables import markdown
from knobctl.commands.values import WholeNumbers
from knobctl.serving.answer import Engine
from knobctl.tests.support.chat_requests import messages, png
from knobctl.tests.support.fake_engine import FakeEngine
from knobctl.tests.support.fake_server import RunningServer, running_server

BUDGETS_MS = (10, 20, 40, 80, 160, 320, 640)
IMAGES = tuple(png(colour=(shade, shade, shade)) for shade in range(0, 256, 32))
QUESTIONS = ("What shape is it?", "Is there a circle in the image?", "What is the colour of the shape?")
ROUNDING_MS = 0.002  # of the times in the reply's headers


@dataclass(frozen=True)
class Reply:
    """What one client sent and received. `text` and what follows are of an answer."""

    image: int
    question: str
    budget_ms: int
    outcome: str
    seconds: float
    completion_id: str = ""
    text: str = ""
    setting: str = ""
    queue_ms: float = 0.0
    latency_ms: float = 0.0


def load(server: RunningServer, clients: int, seconds: float) -> list[Reply]:
    """Returns the replies to `clients` clients, each of which sends a request as soon as it has the last reply.

    A client that finds the queue full waits as long as the reply says.
    """
    replies: list[list[Reply]] = [[] for _ in range(clients)]
    stop_s = time.monotonic() + seconds

    def run(index: int) -> None:
        draw = random.Random(index)
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            while time.monotonic() < stop_s:
                replies[index].append(_ask(client, draw))

    threads = [threading.Thread(target=run, args=(index,)) for index in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [reply for of_client in replies for reply in of_client]


def _ask(client: openai.OpenAI, draw: random.Random) -> Reply:
    image, question, budget_ms = draw.randrange(len(IMAGES)), draw.choice(QUESTIONS), draw.choice(BUDGETS_MS)
    sent_s = time.perf_counter()
    try:
        raw = client.chat.completions.with_raw_response.create(
            model="fake", messages=messages(question, IMAGES[image]), extra_body={"budget_ms": budget_ms}
        )
    except openai.RateLimitError as error:
        seconds = time.perf_counter() - sent_s
        code = str(error.body["code"]) if isinstance(error.body, dict) else "unknown"
        time.sleep(float(error.response.headers.get("retry-after", 0)))
        return Reply(image, question, budget_ms, code, seconds)
    seconds = time.perf_counter() - sent_s
    completion, headers = raw.parse(), raw.headers
    return Reply(
        image,
        question,
        budget_ms,
        "answered",
        seconds,
        completion.id,
        completion.choices[0].message.content or "",
        headers["x-knobctl-setting"],
        float(headers["x-knobctl-queue-ms"]),
        float(headers["x-knobctl-latency-ms"]),
    )


def check(replies: Sequence[Reply], server: RunningServer, engine: Engine) -> None:
    """Raises AssertionError unless each request has exactly one outcome and each answer is the engine's."""
    answered = [reply for reply in replies if reply.outcome == "answered"]
    assert len({reply.completion_id for reply in answered}) == len(answered), "two replies are the same completion"
    outcomes = Counter(reply.outcome for reply in replies)
    assert set(outcomes) <= {"answered", "budget_unmet", "queue_full"}, outcomes
    for outcome, name in (
        ("answered", "answered"),
        ("budget_unmet", "refused_budget"),
        ("queue_full", "refused_queue"),
    ):
        counted = server.metric(f'knobctl_requests_total{{outcome="{name}"}}')
        assert counted == outcomes[outcome], (
            f"{counted} requests {name} by the server's count, {outcomes[outcome]} here"
        )
    for reply in answered:
        left_ms = reply.budget_ms - reply.queue_ms
        found = set()
        for budget_ms in {int(left_ms - ROUNDING_MS), int(left_ms + ROUNDING_MS)}:
            answer = engine.answer(IMAGES[reply.image], reply.question, max(budget_ms, 1))
            found.add((answer.text, str(answer.setting)))
        assert (reply.text, reply.setting) in found, f"{reply} is not among {found}"


def row(clients: int, replies: Sequence[Reply], seconds: float) -> dict[str, object]:
    """Returns a row of the table."""
    answered = [reply for reply in replies if reply.outcome == "answered"]
    over = sum(reply.queue_ms + reply.latency_ms > reply.budget_ms for reply in answered)
    overhead_ms = [reply.seconds * 1000 - reply.queue_ms - reply.latency_ms for reply in answered]
    outcomes = Counter(reply.outcome for reply in replies)
    return {
        "clients": clients,
        "requests": len(replies),
        "answered": len(answered),
        "budget refused": outcomes["budget_unmet"],
        "queue full": outcomes["queue_full"],
        "answers per s": round(len(answered) / seconds, 1),
        "over budget": f"{over / max(len(answered), 1):.1%}",
        "queue p50 / p95 ms": _percentiles([reply.queue_ms for reply in answered]),
        "outside queue and engine p50 / p95 ms": _percentiles(overhead_ms),
    }


def _percentiles(values: Sequence[float]) -> str:
    return " / ".join(f"{np.percentile(values, percent):.1f}" for percent in (50, 95)) if values else "-"


@click.command()
@click.option("--clients", type=WholeNumbers(), default="2,8,32", show_default=True)
@click.option("--seconds", type=float, default=60.0, show_default=True, help="Duration for each number of clients.")
@click.option("--max-queue", type=int, default=16, show_default=True)
@click.option("--on-miss", type=click.Choice(["refuse", "fastest"]), default="refuse", show_default=True)
def main(clients: tuple[int, ...], seconds: float, max_queue: int, on_miss: str) -> None:
    rows: list[tuple[str, dict[str, object]]] = []
    for count in clients:
        with running_server("--max-queue", str(max_queue), "--on-miss", on_miss) as server:
            replies = load(server, count, seconds)
            check(replies, server, FakeEngine())
            rows.append(("load", row(count, replies, seconds)))
    print(markdown(rows))


if __name__ == "__main__":
    main()
