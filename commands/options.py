"""Options that several commands share. Their parameters are named as in the functions that the commands call."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from .values import PATH_OR_NAME, Milliseconds, merged_pairs

COMMAND_LINE = "knobctl.command_line"  # key in click's context: the words after `knobctl`

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def command_line() -> tuple[str, ...]:
    """Returns the command that is running as one line for a shell; empty if it was called from Python."""
    words = click.get_current_context().meta.get(COMMAND_LINE)
    return () if words is None else (shlex.join(["knobctl", *words]),)


def json_option(command: Decorated) -> Decorated:
    """Adds `--json`: print the result as one JSON object on stdout."""
    return click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")(command)


def details_option(command: Decorated) -> Decorated:
    """Adds `--details`: print every table of a report instead of its summary."""
    return click.option(
        "--details", is_flag=True, help="Print every figure, by budget and by dataset, and what was chosen how often."
    )(command)


def split_option(command: Decorated) -> Decorated:
    """Adds the split that a report covers."""
    return click.option(
        "--split",
        default="test",
        show_default=True,
        type=click.Choice(["train", "val", "test"]),
        help="Split of the cache to report on.",
    )(command)


def sources_option(command: Decorated) -> Decorated:
    """Adds the present location of datasets whose files have moved since the cache was made."""
    return click.option(
        "--dataset",
        "sources",
        type=PATH_OR_NAME,
        multiple=True,
        metavar="NAME=PATH",
        callback=merged_pairs(Path),
        help="Present location of a dataset's files.  [default: as recorded in the cache]",
    )(command)


def within_option(command: Decorated) -> Decorated:
    """Adds the service level of controllers."""
    return click.option(
        "--within",
        type=click.FloatRange(0, 1, min_open=True, max_open=True),
        metavar="SHARE",
        help="Keep the budget of at least this share of the requests that can meet it: 0.9, 0.95 or 0.99.",
    )(command)


def engine_options(command: Decorated) -> Decorated:
    """Adds what an engine is made of, besides controllers. Parameters are named as in `serving.engine.Engine`."""
    for option in (
        within_option,
        click.option("--task", help="Dataset whose prompt style and token limit are used.  [default: the only one]"),
        click.option("--dtype", help="float32, bfloat16 or float16.  [default: as the controllers were trained for]"),
        click.option("--device", help="cuda, cuda:1, ... or cpu.  [default: cuda where there is one, else cpu]"),
        click.option("--revision", help="Revision of a model from the hub."),
        click.option("--model", type=PATH_OR_NAME, help="The model.  [default: the one that the controllers name]"),
    ):
        command = option(command)
    return command


def report_options(command: Decorated) -> Decorated:
    """Adds the options of every command that reports on policies."""
    for option in (
        click.option(
            "--seed",
            type=click.IntRange(0),
            default=0,
            show_default=True,
            help="Seed of the intervals and of the random baseline.",
        ),
        click.option(
            "--resamples",
            type=click.IntRange(1),
            default=1000,
            show_default=True,
            help="Bootstrap resamples, clustered by image.",
        ),
        click.option(
            "--ablations",
            "with_ablations",
            is_flag=True,
            help="Also report Stage1 alone, Stage2 alone, and each knob alone.",
        ),
        click.option(
            "--baseline",
            "baselines",
            multiple=True,
            callback=lambda _ctx, _param, names: names or None,
            help="Baselines to report.  [default: the usual ones that the cache supports]",
        ),
        click.option(
            "--budgets",
            "budgets_ms",
            type=Milliseconds(),
            help="Budgets of the cache's grid, in ms: 40,80  [default: all]",
        ),
    ):
        command = option(command)
    return command
