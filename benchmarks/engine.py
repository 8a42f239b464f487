"""Measures what the controllers cost inside a request: their own time, and that of the probe with its read-out.

Three runs of each request alternate in one process: the engine; its setting with the probe but without controllers; its
setting alone. A share is relative to the setting alone, from medians over the repeats of each request. The controllers'
own time is also measured without a model at d_model 2048, beside `TwoStagePolicy`, which reports use.

    python benchmarks/engine.py runs/controllers --requests 40
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import click
import numpy as np
import torch
from tables import Row, markdown

from knobctl.controllers.budget_encoder import BudgetEncoder
from knobctl.controllers.conditions import ModelIdentity
from knobctl.controllers.single_request import SingleRequestChooser
from knobctl.controllers.two_stage import TwoStagePolicy
from knobctl.data.datasets.image_input import image_pixels
from knobctl.data.datasets.sample_set import load_samples
from knobctl.data.knobs import KnobSpace
from knobctl.data.protocols import Requests
from knobctl.data.samples import Sample
from knobctl.devices import num_threads
from knobctl.precompute.execution.request_decoder import Mark
from knobctl.precompute.latency.clocks import quiet, timed
from knobctl.precompute.latency.timed_request import decoder_for, run_request
from knobctl.serving.answer import Answer
from knobctl.serving.engine import Engine
from knobctl.tests.support.random_controllers import with_random_weights

D_MODEL, OWN_TIME_CALLS = 2048, 400


@click.command(help=__doc__)
@click.argument("controllers_path", type=click.Path(path_type=Path))
@click.option("--requests", default=40, show_default=True, help="Questions, each under one budget of the grid.")
@click.option("--repeats", default=7, show_default=True, help="Runs of each request in each condition.")
@click.option("--dataset", default="easy_vqa", show_default=True)
@click.option("--device", default="cpu", show_default=True)
def main(controllers_path: Path, requests: int, repeats: int, dataset: str, device: str) -> None:
    load = os.getloadavg()[0]
    rows = [*own_time_rows(), *request_rows(Engine(controllers_path, device=device), dataset, requests, repeats)]
    click.echo(f"# What the controllers cost\n\n{os.cpu_count()} cores, load {load:.1f}, torch {torch.__version__}.\n")
    click.echo(markdown(rows))


def own_time_rows() -> Iterator[Row]:
    """Yields the controllers' own time at d_model 2048, one thread, caches warm."""
    encoder = BudgetEncoder.from_seed(D_MODEL, 0)
    identity = ModelIdentity("none", D_MODEL, 16, 8)
    made = with_random_weights(
        KnobSpace(), identity, (20.0,), encoder, seed=0
    )  # untrained ones tie, which takes longer
    chooser, policy = SingleRequestChooser(made), TwoStagePolicy(made)
    rng = np.random.default_rng(0)
    feature_D = rng.normal(size=D_MODEL).astype(np.float32)
    token_D = rng.normal(size=D_MODEL).astype(np.float16)
    unknown_X = np.full(len(made.space.settings), np.nan)
    budgets = iter(range(1000, 1_000_000))

    def single(budget_ms: float) -> None:
        allowed_JA = chooser.allowed(unknown_X, budget_ms)
        first = chooser.choose_image(feature_D, budget_ms, allowed_JA)
        chooser.choose_compute(token_D, first.choice, allowed_JA)

    def batched() -> None:
        one = Requests(("a",), ("a",), feature_D[None], np.array([20.0], dtype=np.float32))
        policy.choose_compute(one, *policy.choose_image(one), token_D[None])

    conditions: dict[str, Callable[[], None]] = {
        "engine": lambda: single(20.0),
        "engine, a new budget": lambda: single(float(next(budgets))),
        "TwoStagePolicy, a batch of one": batched,
    }
    times: dict[str, list[float]] = {name: [] for name in conditions}
    with num_threads(1):
        for _ in range(OWN_TIME_CALLS):
            for name, call in conditions.items():
                call()  # brings its weights back into the processor's cache
                start = time.perf_counter()
                call()
                times[name].append(1e3 * (time.perf_counter() - start))
    for name, found in times.items():
        middle, p95 = np.quantile(found[20:], [0.5, 0.95])
        yield "own", {f"both stages, d_model {D_MODEL}": name, "median ms": f"{middle:.3f}", "p95 ms": f"{p95:.3f}"}


def request_rows(engine: Engine, dataset: str, count: int, repeats: int) -> Iterator[Row]:
    """Yields the shares of requests' latency."""
    budgets_ms, draw = engine.controllers.budgets_ms, random.Random(0)
    shares = [
        request_shares(engine, sample, float(int(budgets_ms[number % len(budgets_ms)])), repeats, draw)
        for number, sample in enumerate(load_samples(dataset, limit=count, seed=3).samples)
    ]
    for name in shares[0]:
        middle, p95 = np.quantile([share[name] for share in shares], [0.5, 0.95])
        values = {f"share of {engine.model_name}'s request": name, "median": f"{middle:.1%}", "p95": f"{p95:.1%}"}
        yield "shares", values


def request_shares(
    engine: Engine, sample: Sample, budget_ms: float, repeats: int, draw: random.Random
) -> dict[str, float]:
    """Returns what the controllers and the probe add to one request, relative to its setting alone."""
    knobs, rgb = engine.knobs, image_pixels(sample.image.read_bytes())

    def answer(asked_ms: float) -> Answer:
        return engine.answer(rgb, sample.question, asked_ms, task=sample.dataset)

    made = answer(budget_ms)
    plan, position = knobs.plans[made.setting], made.setting.insertion_position or 0
    prepared = knobs.prepare(sample, rgb, knobs.view(rgb, made.setting.tier))
    decoder, probe_D = decoder_for(knobs, prepared, made.output_tokens), knobs.probes((budget_ms,))[0]

    def run(mark: Mark, position: int) -> None:
        run_request(knobs, prepared, plan, position, probe_D, num_tokens=made.output_tokens, decoder=decoder, mark=mark)

    def fixed_ms(position: int) -> float:
        with quiet():
            return timed(knobs.model.device, lambda mark: run(mark, position), blocks=False).total_ms

    answers: list[Answer] = []
    with_probe_ms: list[float] = []
    alone_ms: list[float] = []
    calls: list[Callable[[], None]] = [
        lambda: answers.append(answer(budget_ms)),
        lambda: with_probe_ms.append(fixed_ms(position)),
        lambda: alone_ms.append(fixed_ms(0)),
    ]
    for _ in range(repeats):
        draw.shuffle(calls)
        for call in calls:
            call()
    alone = median(alone_ms)
    return {
        "controllers, with language feature": (median(one.latency_ms.controllers for one in answers) / alone),
        "probe and read-out": median(with_probe_ms) / alone - 1,
        "all that the engine adds": median(one.latency_ms.total for one in answers) / alone - 1,
        "controllers, a new budget (one run each)": answer(draw.uniform(1e4, 1e8)).latency_ms.controllers / alone,
    }


if __name__ == "__main__":
    main()
