"""`knobctl demo`: all steps with the bundled model, on images that were not used to train it."""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from ..console import ConsoleProgress, emit
from ..data.errors import KnobctlError
from ..data.files.atomic import write_atomically
from ..data.knobs import KnobSpace
from .options import command_line, json_option
from .values import PATH

if TYPE_CHECKING:
    from rich.console import RenderableType

MODEL = "nano"
DATASETS = ("easy_vqa", "small_print")
RUNS = 1  # timed runs in the cache; for the same time, more samples help more than more runs
ANSWER_SAMPLES = 32  # tried until both budgets give different settings
LIVE_SAMPLES = 20  # of the test split; each live request is timed three times, and this keeps the demo short
MAX_WORKERS = 2  # parallel processes; more would compete for memory bandwidth during timings
# Multiples of the full setting's latency on an idle machine; two processes side by side are a few percent slower.
# Far below these (the cheapest setting takes 0.55x), every policy picks the cheapest setting; far above, the budget
# does not constrain the choice.
BUDGETS = ("0.7x", "0.8x", "0.9x", "1.0x", "1.2x")
CONTROLLER_SEEDS = 3  # of the cross-validation


class Step(NamedTuple):
    """One step of the demo. Later steps find the result under the step's name."""

    name: str
    what: str  # in one line, before it runs
    run: Callable[[], Any]


@click.command()
@click.option(
    "--out", type=PATH, default=Path("runs/demo"), show_default=True, help="Directory for the cache and all results."
)
@click.option("--samples", type=click.IntRange(20), default=130, show_default=True, help="Samples of each dataset.")
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=42,
    show_default=True,
    help="Seed of the drawn samples and, through them, of the controllers, folds and intervals.",
)
@json_option
def demo(out: Path, samples: int, seed: int, as_json: bool) -> None:
    """Run precompute, cross-validate, train, validate --live and answer with the bundled model on the CPU.

    knobctl demo --samples 50 --out runs/small-demo
    """
    emit(
        run_demo(out, samples=samples, seed=seed, progress=ConsoleProgress(), made_by=command_line()), as_json, _render
    )


def run_demo(
    out: Path, *, samples: int, seed: int, progress: ConsoleProgress, made_by: Sequence[str] = ()
) -> dict[str, Any]:
    """Runs every step; returns the report of the cross-validation with the live run and the seconds of each step.

    Args:
        out: directory of `cache`, `controllers` and `report.json`. A cache of the same run is resumed or used again.
        samples: number of samples of each dataset.
        made_by: the command, which the page shows.
        seed: of the drawn samples. The seeds of the controllers follow from it, and differ between demo seeds.

    Raises:
        KnobctlError: the running model differs from replay on a sample of the test split, or a step failed.
    """
    from ..devices import single_thread
    from ..precompute.run.config import PrecomputeConfig
    from ..precompute.scale.launch import precompute
    from ..replay.evaluation.validate import validate_controllers
    from ..replay.recipes import recipe
    from ..replay.report.drawing.style import require_matplotlib
    from ..replay.report.page.write import write_report
    from ..replay.training.cross_validate import cross_validate
    from ..replay.training.train import train_controllers
    from .live import live_system

    files = {
        "cache": out / "cache",
        "controllers": out / "controllers",
        "report": out / "report.json",
        "page": out / "report.html",
    }
    require_matplotlib()  # before the model runs for minutes
    results: dict[str, Any] = {}
    space = KnobSpace()
    config = PrecomputeConfig(
        model=MODEL,
        space=space,
        datasets=DATASETS,
        out=files["cache"],
        samples=samples,
        seed=seed,
        device="cpu",
        runs=RUNS,
        budgets=BUDGETS,
        workers=min(MAX_WORKERS, len(os.sched_getaffinity(0))),
    )
    seeds = controller_seeds(seed)
    steps = (
        Step(
            "precompute",
            f"{samples} samples of each of {', '.join(DATASETS)} under {len(space.settings)} settings, "
            f"{config.num_workers} process{'es' if config.num_workers > 1 else ''}; this takes most of the time",
            lambda: precompute(config, progress),
        ),
        Step(
            "cross-validate",
            f"{len(seeds)} controllers and the baselines for each of 5 parts of the samples, trained on the others",
            lambda: cross_validate(
                files["cache"], recipe("tuned", seeds=seeds), fold_seed=seed, seed=seed, progress=progress
            ),
        ),
        Step(
            "train",
            "Stage1 and Stage2, by replay from the cache",
            lambda: train_controllers(
                files["cache"], files["controllers"], recipe("tuned", seeds=seeds[:1]), progress=progress
            ),
        ),
        Step(
            "validate --live",
            f"these controllers on the running model, at most {LIVE_SAMPLES} samples of the test split",
            lambda: validate_controllers(
                files["controllers"],
                files["cache"],
                seed=seed,
                live=live_system(files["controllers"], files["cache"], device="cpu", progress=progress),
                live_samples=LIVE_SAMPLES,
                progress=progress,
            ),
        ),
        Step(
            "answer",
            "one question under a small and a large latency budget",
            lambda: answer_twice(files["controllers"], out / "question.png", progress),
        ),
        Step(
            "report",
            "one page about the cross-validation, to open in a browser",
            lambda: write_report(files["cache"], out=files["page"], report=results["cross-validate"], made_by=made_by),
        ),
    )
    with single_thread():
        seconds = _run(steps, results, progress)
    record = {
        **results["cross-validate"].to_dict(),
        "live": results["validate --live"].to_dict()["live"],
        "answers": results["answer"],
        "demo_seed": seed,
        "seconds": seconds,
        "files": {name: str(path) for name, path in files.items()},
    }
    _write_report(record, files["report"])
    _check_agreement(record["live"]["agreement"], out)
    return record


def answer_twice(controllers: Path, image: Path, progress: ConsoleProgress) -> list[dict[str, Any]]:
    """Answers a bundled question under the smallest and the largest budget of the grid; writes its image to a file.

    Takes the first question for which the controllers choose different settings, or the last one tried.

    Returns:
        For each budget, the answer with the command that repeats it.
    """
    from ..data.datasets.sample_set import load_samples
    from ..serving.engine import Engine

    engine = Engine(controllers, device="cpu", progress=progress)
    budgets_ms = [
        float(int(budget)) for budget in (engine.controllers.budgets_ms[0], engine.controllers.budgets_ms[-1])
    ]
    for sample in load_samples(DATASETS[0], limit=ANSWER_SAMPLES, seed=1).samples:
        data = sample.image.read_bytes()
        made = [engine.answer(data, sample.question, budget_ms, task=sample.dataset) for budget_ms in budgets_ms]
        if made[0].setting != made[1].setting:
            break
    write_atomically(image, data)
    words = ["knobctl", "answer", str(controllers), "--image", str(image), "--question", sample.question]
    words += ["--task", sample.dataset, "--device", "cpu", "--budget-ms"]
    return [
        {**one.to_dict(), "summary": one.summary(), "command": shlex.join([*words, f"{one.budget_ms:g}"])}
        for one in made
    ]


def controller_seeds(seed: int) -> tuple[int, ...]:
    """Returns the seeds of the controllers of a demo; no two demo seeds share one."""
    return tuple(CONTROLLER_SEEDS * seed + place for place in range(CONTROLLER_SEEDS))


def _run(steps: tuple[Step, ...], results: dict[str, Any], progress: ConsoleProgress) -> dict[str, float]:
    """Runs the steps in order and puts their results into `results`; returns the duration of each in seconds."""
    seconds = {}
    for number, step in enumerate(steps, start=1):
        progress.note(f"step {number} of {len(steps)}, {step.name}: {step.what}")
        start = time.perf_counter()
        results[step.name] = step.run()
        seconds[step.name] = round(time.perf_counter() - start, 1)
        progress.note(f"step {number} of {len(steps)}, {step.name}: done in {seconds[step.name]:.0f} s")
    return seconds


def _render(record: Mapping[str, Any]) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    from ..data.cache.reader import BUSY
    from ..replay.report.summary import headline, summary_table
    from .render import render_record

    seeds = set(record["controllers"]) - set(record["subjects"])  # the subject is their mean
    policies = {name: policy for name, policy in record["policies"].items() if name not in seeds}
    live = record["live"]
    own = live["overhead"]["controllers"]
    agreed = (  # otherwise `_check_agreement` has raised
        f"Live: {live['n_samples']} samples on the running model; all {live['agreement']['settings_compared']} "
        f"settings and {live['agreement']['answers_compared']} answers equal those of replay. "
        f"{live['agreement']['same_timed']} of {live['agreement']['timed_compared']} are the same in whole executions, "
        f"where the controllers take {own['p50_ms']:.2f} ms, {own['p50_share']:.1%} of a request, in the median."
    )
    notes = [Text(f"note: {warning}", style="yellow") for warning in record["warnings"]]
    busy = [note for note in notes if BUSY in note.plain]  # first, because nothing below it can be relied on
    answers = [
        Text(line)
        for one in record["answers"]
        for line in ("", one["command"], f"  {one['text']}", f"  {one['summary']}")
    ]
    files, seconds = (render_record(name, record[name]) for name in ("files", "seconds"))
    return Group(
        *busy,
        Text(headline(record)),
        Text(""),
        summary_table({**record, "policies": policies}),
        Text(agreed),
        *[note for note in notes if note not in busy],
        Text(""),
        files,
        seconds,
        *answers,
    )


def _write_report(record: dict[str, Any], path: Path) -> None:
    try:
        write_atomically(path, (json.dumps(record, indent=2, allow_nan=False) + "\n").encode())
    except OSError as error:
        raise KnobctlError(
            f"the report cannot be written to {path} ({error.strerror}): free space or make it writable, and run the "
            "same command again; the cache is kept."
        ) from error


def _check_agreement(found: dict[str, Any], out: Path) -> None:
    """Raises KnobctlError unless every setting, answer and accuracy of the live run equals replay.

    The timed executions may differ: their single probe may give a token with another last bit.
    """
    differences = [one for one in found["disagreements"] if one["kind"] != "timed"]
    if differences:
        raise KnobctlError(
            f"the running model differs from replay {len(differences)} times; first: {differences[0]}. "
            f"All differences are listed in {out / 'report.json'}."
        )
    compared = ("settings_compared", "same_setting"), ("answers_compared", "same_answer")
    if any(found[total] == 0 or found[same] != found[total] for total, same in compared):
        raise KnobctlError(f"some live requests could not be compared with replay: see {out / 'report.json'}.")
