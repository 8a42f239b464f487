"""Loads the server with concurrent OpenAI clients.

    python benchmarks/serve_load.py
    python benchmarks/serve_load.py runs/controllers --task easy_vqa --budgets 16,24,32,64,128,256

Without controllers the server's engine sleeps instead of running a model, so that this measures the server: queueing,
refusing and replying. With them, it runs their model on the CPU. Client retries are off. Checks that every request was
answered or refused exactly once, by the clients' count and by the server's metrics, and that every text and setting
equals `Engine.answer`'s for the budget that the queue had left. Prints one row for each number of clients.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import product

import click
import numpy as np
import openai

from knobctl.benchmarks.tables import markdown
from knobctl.commands.values import WholeNumbers
from knobctl.data.datasets.sample_set import load_samples
from knobctl.serving.answer import Engine
from knobctl.tests.support.chat_requests import messages, png
from knobctl.tests.support.fake_engine import FakeEngine
from knobctl.tests.support.fake_server import RunningServer, running_server

ROUNDING_MS = 0.002  # of the times in the reply's headers
QUESTIONS = ("What shape is it?", "Is there a circle in the image?", "What is the colour of the shape?")
REAL_IMAGES = 32  # with controllers: bundled samples, each with its question


@dataclass(frozen=True)
class Workload:
    """What clients ask, and of whom."""

    questions: tuple[tuple[bytes, str], ...]  # image and question
    budgets_ms: tuple[int, ...]
    engine: Engine  # answers as the server's does
    server_options: tuple[str, ...]


@dataclass(frozen=True)
class Reply:
    """What one client sent and received. `text` and what follows are of an answer."""

    question: int  # index in the workload
    budget_ms: int
    outcome: str
    seconds: float
    completion_id: str = ""
    text: str = ""
    setting: str = ""
    queue_ms: float = 0.0
    latency_ms: float = 0.0


def fake_workload(budgets_ms: tuple[int, ...]) -> Workload:
    images = [png(colour=(shade, shade, shade)) for shade in range(0, 256, 32)]
    return Workload(tuple(product(images, QUESTIONS)), budgets_ms, FakeEngine(), ())


def real_workload(controllers: str, task: str | None, budgets_ms: tuple[int, ...]) -> Workload:
    from knobctl.serving.engine import Engine as RealEngine

    engine = RealEngine(controllers, device="cpu", task=task, warm_up=0)
    if len(engine.tasks) > 1:
        raise click.UsageError(f"name one of the controllers' datasets with --task: {', '.join(engine.tasks)}")
    samples = load_samples(next(iter(engine.tasks)), limit=REAL_IMAGES, seed=5).samples
    questions = tuple((sample.image.read_bytes(), sample.question) for sample in samples)
    options = ("--controllers", controllers, *(("--task", task) if task else ()))
    return Workload(questions, budgets_ms, engine, options)


def load(server: RunningServer, work: Workload, clients: int, seconds: float) -> list[Reply]:
    """Returns the replies to `clients` clients, each of which sends a request as soon as it has the last reply.

    A client that finds the queue full waits as long as the reply says.
    """
    stop_s = time.monotonic() + seconds

    def run(index: int) -> list[Reply]:
        draw, replies = random.Random(index), []
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            while time.monotonic() < stop_s:
                replies.append(_ask(client, draw, work))
        return replies

    with ThreadPoolExecutor(clients) as threads:  # any other failure of a client is raised here
        return [reply for of_client in threads.map(run, range(clients)) for reply in of_client]


def _ask(client: openai.OpenAI, draw: random.Random, work: Workload) -> Reply:
    index, budget_ms = draw.randrange(len(work.questions)), draw.choice(work.budgets_ms)
    image, question = work.questions[index]
    sent_s = time.perf_counter()
    try:
        raw = client.chat.completions.with_raw_response.create(
            model=work.engine.model_name, messages=messages(question, image), extra_body={"budget_ms": budget_ms}
        )
    except openai.RateLimitError as error:
        seconds = time.perf_counter() - sent_s
        code = str(error.body["code"]) if isinstance(error.body, dict) else "unknown"
        time.sleep(float(error.response.headers.get("retry-after", 0)))
        return Reply(index, budget_ms, code, seconds)
    seconds = time.perf_counter() - sent_s
    completion, headers = raw.parse(), raw.headers
    return Reply(
        index,
        budget_ms,
        "answered",
        seconds,
        completion.id,
        completion.choices[0].message.content or "",
        headers["x-knobctl-setting"],
        float(headers["x-knobctl-queue-ms"]),
        float(headers["x-knobctl-latency-ms"]),
    )


def check(replies: Sequence[Reply], server: RunningServer, work: Workload) -> None:
    """Raises AssertionError unless each request has exactly one outcome and each answer is the engine's."""
    answered = [reply for reply in replies if reply.outcome == "answered"]
    assert len({reply.completion_id for reply in answered}) == len(answered), "two replies are the same completion"
    outcomes = Counter(reply.outcome for reply in replies)
    assert set(outcomes) <= {"answered", "budget_unmet", "queue_full"}, outcomes
    counted = server.metric("knobctl_requests_total")
    assert counted == len(replies), f"{counted} requests by the server's count, {len(replies)} here"
    for outcome, name in (
        ("answered", "answered"),
        ("budget_unmet", "refused_budget"),
        ("queue_full", "refused_queue"),
    ):
        counted = server.metric(f'knobctl_requests_total{{outcome="{name}"}}')
        assert counted == outcomes[outcome], (
            f"{counted} requests {name} by the server's count, {outcomes[outcome]} here"
        )

    @cache
    def expected(question: int, budget_ms: int) -> tuple[str, str]:
        answer = work.engine.answer(*work.questions[question], budget_ms)
        return answer.text, str(answer.setting)

    for reply in answered:
        left_ms = reply.budget_ms - reply.queue_ms
        found = {
            expected(reply.question, max(int(budget_ms), 1))
            for budget_ms in (left_ms - ROUNDING_MS, left_ms + ROUNDING_MS)
        }
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


@click.command(help=__doc__)
@click.argument("controllers", required=False)
@click.option("--task", help="With CONTROLLERS: the dataset of all questions.")
@click.option("--budgets", "budgets_ms", type=WholeNumbers(), default="10,20,40,80,160,320,640", show_default=True)
@click.option("--clients", type=WholeNumbers(), default="2,8,32", show_default=True)
@click.option("--seconds", type=float, default=60.0, show_default=True, help="Duration for each number of clients.")
@click.option("--max-queue", type=int, default=16, show_default=True)
@click.option("--on-miss", type=click.Choice(["refuse", "fastest"]), default="refuse", show_default=True)
def main(
    controllers: str | None,
    task: str | None,
    budgets_ms: tuple[int, ...],
    clients: tuple[int, ...],
    seconds: float,
    max_queue: int,
    on_miss: str,
) -> None:
    work = fake_workload(budgets_ms) if controllers is None else real_workload(controllers, task, budgets_ms)
    rows: list[tuple[str, dict[str, object]]] = []
    for count in clients:
        options = ("--max-queue", str(max_queue), "--on-miss", on_miss, *work.server_options)
        with running_server(*options) as server:
            replies = load(server, work, count, seconds)
            check(replies, server, work)
            rows.append(("load", row(count, replies, seconds)))
    print(markdown(rows))


if __name__ == "__main__":
    main()
