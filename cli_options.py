"""What the commands share: options, parsing of their values, output, errors. Knows nothing of what commands do."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .cli_values import PATH, PATH_OR_NAME, SampleCounts, numbers, pairs
from .data.errors import KnobctlError
from .data.protocols import LEAST_RUNS

if TYPE_CHECKING:
    from .replay.recipes import TrainConfig


SEEDS_NOTE = "A seed trained beside others may differ in the last digits from the same seed trained alone."


class KnobctlGroup(click.Group):
    """Prints what a user can fix as one line and exits with 1; malformed options exit with 2, as click does."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Runs a command on a stdout that any text can be written to."""
        if sys.stdout is None:  # closed by the caller
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  open until the process ends
        elif isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")
            if sys.stdout is sys.__stdout__:
                sys.stdout = ResultStream(sys.stdout.buffer, sys.stdout.encoding, "backslashreplace")
        return super().main(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except KnobctlError as error:
            raise click.ClickException(str(error)) from error


class ResultStream(io.TextIOWrapper):
    """stdout of a command; when it cannot be written to, as on a full disk, the command ends with one line."""

    def write(self, text: str, /) -> int:
        with _stdout_errors(self):
            return super().write(text)

    def flush(self) -> None:
        with _stdout_errors(self):
            super().flush()


@contextmanager
def _stdout_errors(stream: io.TextIOWrapper) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:  # the reader, such as `head`, has what it wants: click ends the command in silence
        raise
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # or the interpreter's last flush would fail again
        raise click.ClickException(
            f"the result cannot be written to stdout ({error.strerror}): send it elsewhere. "
            "Files that the command wrote are not affected."
        ) from error


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--json`: the result as one JSON object on stdout, for machines."""
    return click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")(command)


TABLE_WIDTH = 140  # characters that the widest report takes


def emit(result: dict[str, Any], as_json: bool, render: Callable[[dict[str, Any]], Any]) -> None:
    """Prints a result on stdout: JSON, or what `render` makes of it."""
    if as_json:
        click.echo(json.dumps(result, indent=2, allow_nan=False))
        return
    from rich.console import Console

    # A narrower terminal wraps long lines, which can be read; a table fitted to it would lose its figures.
    width = max(TABLE_WIDTH, Console(file=sys.stdout).width) if sys.stdout.isatty() else TABLE_WIDTH
    Console(file=sys.stdout, width=width).print(render(result))


@contextmanager
def progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """Shows a bar with the time left on stderr, silent when that is no terminal; the body reports (done, total)."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(title, total=None, visible=False)
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)


def log(text: str) -> None:
    """Progress and notes go to stderr, so that stdout holds the result alone."""
    click.echo(text, err=True)


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of everything that runs the model."""
    for option in (
        click.option("--images", type=PATH, help="Folder that image paths of datasets are relative to."),
        click.option("--dtype", default="auto", show_default=True, help="float32 on the CPU, bfloat16 on a GPU."),
        click.option("--device", default="cuda", show_default=True, help="cuda, cuda:1, ... or cpu."),
        click.option("--revision", help="Revision of a model from the hub."),
    ):
        command = option(command)
    return command


def dataset_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of everything that draws samples."""
    for option in (
        click.option("--skip-bad", is_flag=True, help="Skip, and count, rows that cannot be read or run."),
        click.option(
            "--column",
            multiple=True,
            metavar="[DATASET.]FIELD=COLUMN",
            help="A field that the files keep under another name: answers=multiple_choice_answer.",
        ),
        click.option(
            "--source-split",
            multiple=True,
            metavar="[DATASET=]SPLIT",
            help="Split of the files to read; `all`: every row.  [default: the dataset's usual one]",
        ),
        click.option("--data-root", type=PATH, help="Folder of official annotation files and images."),
        click.option("--max-new-tokens", multiple=True, metavar="DATASET=N", help="Another limit of answer tokens."),
        click.option(
            "--metric", multiple=True, metavar="DATASET=METRIC", help="Another metric than the dataset's own."
        ),
        click.option("--seed", default=42, show_default=True, help="Of the samples, the pilot and the budget encoder."),
        click.option(
            "--samples",
            type=SampleCounts(),
            help="Samples of each dataset, or of some by name, drawn by seed.  [default: all]",
        ),
        click.option(
            "--dataset",
            "datasets",
            type=PATH_OR_NAME,
            multiple=True,
            metavar="NAME[=PATH]",
            help="A known dataset, or your own file.",
        ),
    ):
        command = option(command)
    return command


def moved_dataset_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Where datasets of a cache lie now."""
    return click.option(
        "--dataset",
        "sources",
        type=PATH_OR_NAME,
        multiple=True,
        metavar="NAME=PATH",
        callback=_paths_by_name,
        help="Where a dataset's files lie now.  [default: where the cache says]",
    )(command)


def _paths_by_name(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> dict[str, Path]:
    return {name: Path(path) for name, path in pairs("--dataset", values).items()}


# Settings of training by the names of `replay/recipes.py`; without one, the recipe's value holds.
TRAINING: tuple[tuple[str, Any, str], ...] = (
    ("epochs", int, "Times that each training sample is taken, each with one budget drawn for it."),
    ("batch_size", int, "Requests a step."),
    ("lr", float, "Peak learning rate.  [default: by the size of the cache]"),
    ("stage1_lr_ratio", float, "Stage1 learns at lr times this."),
    ("lr_schedule", click.Choice(["cosine", "constant"]), "Cosine has a linear warm-up."),
    ("weight_decay", float, "Weight decay."),
    ("max_grad_norm", float, "Clip the gradient's norm."),
    ("estimator", click.Choice(["grpo", "exact"]), "Draws, or the expected reward summed over all settings."),
    ("group_size", int, "Draws in a group, at least 2 (1 with the exact estimator)."),
    ("scale_rewards", click.Choice(["group", "batch", "none"]), "Whose standard deviation divides advantages."),
    ("advantage_clip", float, "Bound of an advantage."),
    ("epsilon", float, "Clip of the probability ratio."),
    ("beta", float, "Weight of the KL divergence from the initial policy."),
    ("num_iterations", int, "Updates per drawn batch."),
    ("entropy_bonus", float, "Entropy bonus at the end of training."),
    ("entropy_bonus_start", float, "Entropy bonus at its start."),
    ("ema_decay", float, "Decay of the running mean of the weights that is selected and saved; 0: the weights."),
    ("evaluations", int, "Greedy evaluations on val; the best is kept."),
    ("patience", int, "Evaluations without a better one before a seed stops."),
    ("device", str, "cpu or cuda."),
)
REWARD_WEIGHTS = {
    "alpha": "accuracy",
    "beta": "the soft miss of the budget",
    "gamma": "the squared overrun",
    "delta": "time left over",
    "epsilon": "complexity",
}


def training_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The recipe, every setting of training that may differ from it, and every weight of the reward."""
    threads = click.IntRange(1)
    for option in (
        click.option(
            "--allow-constant-accuracy",
            is_flag=True,
            default=None,
            help="Train on latency alone where accuracy is the same for all samples and settings.",
        ),
        click.option("--threads", type=threads, default=1, show_default=True, help="More only where cores idle."),
        click.option(
            "--train-budget-encoder",
            is_flag=True,
            default=None,
            help="Let Stage1's copy of the budget encoder learn; the copy behind the latency tokens stays as cached.",
        ),
    ):
        command = option(command)
    for name, what in reversed(REWARD_WEIGHTS.items()):
        command = click.option(f"--reward-{name}", type=float, help=f"Weight of {what} in the reward, 0 or more.")(
            command
        )
    for name, kind, what in reversed(TRAINING):
        command = click.option(f"--{name.replace('_', '-')}", type=kind, help=what)(command)
    what = "tuned, or classic: the original's values."
    return click.option("--recipe", default="tuned", show_default=True, help=what)(command)


def training_config(seeds: tuple[int, ...] | None, options: dict[str, Any]) -> TrainConfig:
    """Returns the recipe with the settings that `training_options` were given; None for seeds: the recipe's own."""
    from .replay.recipes import recipe
    from .replay.reward import RewardWeights

    weights = {name: options[f"reward_{name}"] for name in REWARD_WEIGHTS}
    given = {name: value for name, value in weights.items() if value is not None}
    return recipe(
        options["recipe"],
        seeds=seeds,
        reward_weights=RewardWeights(**given) if given else None,
        train_budget_encoder=options["train_budget_encoder"],
        allow_constant_accuracy=options["allow_constant_accuracy"],
        log_interval=options.get("log_interval"),  # only where there is a log
        **{name: options[name] for name, _, _ in TRAINING},
    )


def split_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """The split that a report is about."""
    choice = click.Choice(["train", "val", "test"])
    return click.option("--split", default="test", show_default=True, type=choice)(command)


def report_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of everything that reports on policies."""
    for option in (
        click.option(
            "--seed",
            type=click.IntRange(0),
            default=0,
            show_default=True,
            help="Of the intervals and the random baseline.",
        ),
        click.option(
            "--resamples",
            type=click.IntRange(1),
            default=1000,
            show_default=True,
            help="Bootstrap resamples, clustered by image.",
        ),
        click.option("--ablations", is_flag=True, help="Also Stage1 alone, Stage2 alone, each knob alone."),
        click.option("--baseline", "baselines", multiple=True, help="Baselines to report.  [default: the usual ones]"),
        click.option("--budgets", default="", help="Budgets of the cache's grid, in ms: 40,80  [default: all]"),
    ):
        command = option(command)
    return command


def live_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What a live validation runs, beside `model_options`."""
    for option in (
        click.option("--model", type=PATH_OR_NAME, help="Model of the live run.  [default: the one the cache names]"),
        click.option(
            "--runs",
            type=click.IntRange(LEAST_RUNS),
            default=LEAST_RUNS,
            show_default=True,
            help="Timed runs of each live request; the median counts.",
        ),
        click.option("--live-budgets", default="", help="Budgets of the live run, any ms.  [default: the report's]"),
        click.option("--live-samples", type=click.IntRange(1), help="Samples run live, by seed.  [default: the split]"),
        click.option("--live", is_flag=True, help="Also run the model, and compare with replay."),
    ):
        command = option(command)
    return command


def report_arguments(options: dict[str, Any]) -> dict[str, Any]:
    """Returns what `report_options` were given, by the names of the functions that report."""
    return {
        "budgets_ms": numbers("--budgets", options["budgets"]),
        "baselines": options["baselines"] or None,
        "with_ablations": options["ablations"],
        "resamples": options["resamples"],
        "seed": options["seed"],
    }
