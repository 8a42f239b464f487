"""`knobctl demo`: all steps with the bundled model, on images that were not used to train it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from ..console import ConsoleProgress, emit
from ..data.errors import KnobctlError
from ..data.files.atomic import write_atomically
from .options import json_option
from .values import PATH

MODEL = "nano"
DATASETS = ("easy_vqa", "small_print")
RUNS = 1  # timed runs in the cache; for the same time, more samples help more than more runs
LIVE_SAMPLES = 20  # of the test split; each live request is timed three times, and this keeps the demo short
MAX_WORKERS = 2  # parallel processes; more would compete for memory bandwidth during timings
# Multiples of the full setting's latency on an idle machine; two processes side by side are a few percent slower.
# Far below these (the cheapest setting takes 0.55x), every policy picks the cheapest setting; far above, the budget
# does not constrain the choice.
BUDGETS = ("0.7x", "0.8x", "0.9x", "1.0x", "1.2x")

Result = TypeVar("Result")


@click.command()
@click.option(
    "--out", type=PATH, default=Path("runs/demo"), show_default=True, help="Directory for the cache and all results."
)
@click.option("--samples", type=click.IntRange(20), default=130, show_default=True, help="Samples of each dataset.")
@click.option("--seed", default=42, show_default=True, help="Seed of every random choice.")
@json_option
def demo(out: Path, samples: int, seed: int, as_json: bool) -> None:
    """Run precompute, train and validate --live with the bundled model on the CPU.

    knobctl demo --samples 50 --out runs/small-demo
    """
    from ..replay.report.tables import render_report
    from .render import render_record

    record = run_demo(out, samples=samples, seed=seed, progress=ConsoleProgress())
    emit(record, as_json, render_report)
    if not as_json:
        emit(record, False, lambda found: render_record("files", {**found["files"], "report": out / "report.json"}))
        emit(record, False, lambda found: render_record("seconds", found["seconds"]))


def run_demo(out: Path, *, samples: int, seed: int, progress: ConsoleProgress) -> dict[str, Any]:
    """Runs precompute, train and validate --live, and returns the report with the duration of each step in seconds.

    Args:
        out: directory of `cache`, `controllers` and `report.json`. A cache of the same run is resumed or used again.
        samples: number of samples of each dataset.

    Raises:
        KnobctlError: the running model differs from replay on a sample of the test split, or a step failed.
    """
    from ..devices import single_thread
    from ..precompute.run.config import PrecomputeConfig
    from ..precompute.run.live_from_cache import live_factory
    from ..precompute.scale.launch import precompute
    from ..replay.evaluation.validate import validate_controllers
    from ..replay.recipes import recipe
    from ..replay.training.train import train_controllers

    cache, controllers = out / "cache", out / "controllers"
    seconds: dict[str, float] = {}

    def step(name: str, what: str, call: Callable[[], Result]) -> Result:
        progress.note(f"{name}: {what}")
        start = time.perf_counter()
        result = call()
        seconds[name] = round(time.perf_counter() - start, 1)
        progress.note(f"{name}: done in {seconds[name]:.0f} s")
        return result

    config = PrecomputeConfig(
        model=MODEL,
        datasets=DATASETS,
        out=cache,
        samples=samples,
        seed=seed,
        device="cpu",
        runs=RUNS,
        budgets=BUDGETS,
        workers=min(MAX_WORKERS, len(os.sched_getaffinity(0))),
    )
    step(
        "precompute",
        f"{samples} samples of each of {', '.join(DATASETS)} under {len(config.space.settings)} settings, "
        f"{RUNS} timed run{'s' if RUNS > 1 else ''}, "
        f"{config.num_workers} process{'es' if config.num_workers > 1 else ''}",
        lambda: precompute(config, progress),
    )
    training = recipe("tuned", seeds=(seed,))
    with single_thread():
        step(
            "train",
            "Stage1 and Stage2, by replay from the cache",
            lambda: train_controllers(cache, controllers, training, progress=progress),
        )
    report = step(
        "validate --live",
        f"the test split by replay, at most {LIVE_SAMPLES} of its samples on the running model",
        lambda: validate_controllers(
            controllers,
            cache,
            seed=seed,
            executor_factory=live_factory(cache, device="cpu"),
            live_samples=LIVE_SAMPLES,
            progress=progress,
        ),
    )
    record = {**report.to_dict(), "seconds": seconds, "files": {"cache": str(cache), "controllers": str(controllers)}}
    _write_report(record, out / "report.json")
    _check_agreement(record["live"]["agreement"], out)
    return record


def _write_report(record: dict[str, Any], path: Path) -> None:
    try:
        write_atomically(path, (json.dumps(record, indent=2, allow_nan=False) + "\n").encode())
    except OSError as error:
        raise KnobctlError(
            f"the report cannot be written to {path} ({error.strerror}): free space or make it writable, and run the "
            "same command again; the cache is kept."
        ) from error


def _check_agreement(found: dict[str, Any], out: Path) -> None:
    """Raises KnobctlError unless every setting, answer and accuracy of the live run equals replay."""
    if found["disagreements"]:
        first = found["disagreements"][0]
        raise KnobctlError(
            f"the running model differs from replay {len(found['disagreements'])} times; first: {first}. "
            f"All differences are listed in {out / 'report.json'}."
        )
    compared = ("settings_compared", "same_setting"), ("answers_compared", "same_answer")
    if any(found[total] == 0 or found[same] != found[total] for total, same in compared):
        raise KnobctlError(f"some live requests could not be compared with replay: see {out / 'report.json'}.")
