"""`knobctl demo`: the whole path on the bundled model, on images that it never saw."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .data.errors import KnobctlError
from .data.progress import Progress

MODEL = "nano"
DATASETS = ("easy_vqa", "small_print")
RUNS = 1  # timed runs in the cache: of ten minutes, more samples are the better use
LIVE_SAMPLES = 20  # of the test split: live requests are timed three times, and the demo should not take longer
MOST_WORKERS = 2  # processes side by side; more would fight for memory while they time
# Of the full setting's latency while nothing runs beside it; two processes side by side are some percent slower.
# Far below (the cheapest setting takes 0.55x), every policy takes the cheapest; far above, none has to choose.
BUDGETS = ("0.7x", "0.8x", "0.9x", "1.0x", "1.2x")

Log = Callable[[str], None]


def run_demo(out: Path, *, samples: int, seed: int, log: Log, progress: Progress) -> dict[str, Any]:
    """Runs precompute, train and validate --live, and returns the report with the time of each step.

    Args:
        out: gets `cache`, `controllers` and `report.json`; what is there already of the same run is used again.
        samples: of each dataset.

    Raises:
        KnobctlError: the live model differed from replay anywhere on the test split, or a step failed.
    """
    from .devices import single_thread
    from .precompute.run.config import PrecomputeConfig
    from .precompute.run.live_from_cache import live_factory
    from .precompute.scale.launch import precompute
    from .replay.evaluation.validate import validate_controllers
    from .replay.recipes import recipe
    from .replay.training.train import train_controllers

    cache, controllers = out / "cache", out / "controllers"
    seconds: dict[str, float] = {}

    def step(name: str, what: str, call: Callable[[], Any]) -> Any:
        log(f"{name}: {what}")
        start = time.perf_counter()
        result = call()
        seconds[name] = round(time.perf_counter() - start, 1)
        log(f"{name}: done in {seconds[name]:.0f} s")
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
        workers=min(MOST_WORKERS, len(os.sched_getaffinity(0))),
    )
    step(
        "precompute",
        f"{samples} samples of each of {', '.join(DATASETS)} under {len(config.space.settings)} settings, "
        f"{RUNS} timed run{'s' if RUNS > 1 else ''}, {config.workers} process{'es' if config.workers > 1 else ''}",
        lambda: precompute(config),
    )
    training = recipe("tuned", seeds=(seed,))
    with single_thread():
        step(
            "train",
            "Stage1 and Stage2, by replay from the cache",
            lambda: train_controllers(cache, controllers, training),
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
    (out / "report.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    _check_agreement(record["live"]["agreement"], out)
    return record


def _check_agreement(found: dict[str, Any], out: Path) -> None:
    """Raises KnobctlError unless every setting, answer and accuracy of the live run is the one of replay."""
    if found["disagreements"]:
        first = found["disagreements"][0]
        raise KnobctlError(
            f"the running model differs from replay {len(found['disagreements'])} times; first: {first}. "
            f"All are listed in {out / 'report.json'}."
        )
    compared = ("settings_compared", "same_setting"), ("answers_compared", "same_answer")
    if any(found[total] == 0 or found[same] != found[total] for total, same in compared):
        raise KnobctlError(f"not every live request could be compared with replay: see {out / 'report.json'}.")
