"""`knobctl validate` and `compare`: what controllers achieve, compared with baselines and the oracle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..console import ConsoleProgress, emit
from ..data.protocols import LEAST_RUNS
from ..precompute.run.config import PrecomputeConfig
from .config_options import config_options
from .options import details_option, json_option, report_options, sources_option, split_option, within_option
from .values import PATH, PATH_OR_NAME, Milliseconds


@click.command()
@click.argument("controllers", type=PATH_OR_NAME)
@click.option("--cache", type=PATH, required=True, help="The cache to report on.")
@split_option
@report_options
@within_option
@click.option("--card", is_flag=True, help="Write the figures to the controllers' card, README.md.")
@click.option("--choices", "choices_out", type=PATH, help="Write every decision to this Parquet file.")
@click.option("--live", is_flag=True, help="Also run the model, and compare it with replay.")
@click.option(
    "--live-samples", type=click.IntRange(1), help="Samples run live, drawn by seed.  [default: all of the split]"
)
@click.option(
    "--live-budgets",
    "live_budgets_ms",
    type=Milliseconds(),
    help="Budgets of the live run, any number of ms.  [default: the report's]",
)
@click.option(
    "--runs",
    type=click.IntRange(LEAST_RUNS),
    default=LEAST_RUNS,
    show_default=True,
    help="Whole executions of each live request, controllers included; their median is its latency.",
)
@click.option("--model", type=PATH_OR_NAME, help="Model of the live run.  [default: the one that the cache names]")
@sources_option
@config_options(PrecomputeConfig, only={"revision", "device", "dtype", "images"})
@details_option
@json_option
def validate(
    controllers: str,
    cache: Path,
    live: bool,
    model: str | None,
    sources: dict[str, Path],
    revision: str | None,
    device: str,
    dtype: str,
    images: Path | None,
    runs: int,
    details: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Report what CONTROLLERS achieve on a held-out split, compared with baselines and the oracle.

    \b
    knobctl validate runs/controllers --cache runs/cache
    knobctl validate runs/controllers --cache runs/cache --live --device cpu
    """
    from ..replay.evaluation.validate import validate_controllers
    from ..replay.report.summary import render_summary
    from ..replay.report.tables import render_report

    progress, system = ConsoleProgress(), None
    if live:
        from ..devices import find_device
        from .live import live_system

        find_device(device)  # a missing device is reported before the replay report is computed
        system = live_system(
            controllers,
            cache,
            within=options["within"],
            runs=runs,
            progress=progress,
            model=model,
            revision=revision,
            device=device,
            dtype=dtype,
            images=images,
            sources=sources,
        )
    report = validate_controllers(controllers, cache, live=system, progress=progress, **options)
    emit(report.to_dict(), as_json, render_report if details else render_summary)


@click.command()
@click.argument("cache", type=PATH)
@click.argument("controllers", nargs=-1, type=PATH_OR_NAME)
@split_option
@report_options
@details_option
@json_option
def compare(cache: Path, controllers: tuple[str, ...], details: bool, as_json: bool, **options: Any) -> None:
    """Compare CONTROLLERS... and the baselines on CACHE, with paired intervals.

    knobctl compare runs/cache runs/controllers runs/classic
    """
    from ..replay.evaluation.compare import compare as run
    from ..replay.report.summary import render_summary
    from ..replay.report.tables import render_report

    emit(run(cache, controllers, **options).to_dict(), as_json, render_report if details else render_summary)
