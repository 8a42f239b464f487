"""`knobctl precompute`: the model under every knob setting into a cache, or an import of recorded results."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import click

from ..console import ConsoleProgress, emit
from ..precompute.run.config import PrecomputeConfig
from .config_options import config_options, default_of
from .options import json_option

# Fields that have no effect on an import of results.
MODEL_ONLY = {"samples", "budgets", "shard", "like", "threads", "workers", "ray", "ray_wait", "stall_timeout"}
MODEL_ONLY |= {"column", "source_split", "tiers", "positions", "top_k", "num_blocks", "prompt"}


@click.command()
@config_options(PrecomputeConfig, optional={"model"})
@click.option("--dry-run", is_flag=True, help="Time a few samples and forecast the run; writes nothing.")
@json_option
def precompute(dry_run: bool, as_json: bool, **options: Any) -> None:
    """Run the frozen model once under every knob setting, into a cache.

    \b
    knobctl precompute --model nano --dataset easy_vqa --samples 100 --out runs/cache --device cpu
    knobctl precompute --from-results results/5run_2000samples --out runs/imported
    """
    if options["model"] is None:
        _import_results(dry_run, as_json, options)
        return
    config = PrecomputeConfig(**options)
    from .render import render_record

    if dry_run:
        from ..precompute.run.forecast import forecast

        emit(forecast(config, ConsoleProgress()), as_json, lambda record: render_record("forecast", record))
        return
    from ..precompute.scale.launch import precompute as run

    emit(run(config, ConsoleProgress()), as_json, lambda record: render_record("cache", record))


def _import_results(dry_run: bool, as_json: bool, options: dict[str, Any]) -> None:
    if options["from_results"] is None:
        raise click.UsageError("name the model with --model (for instance nano), or results with --from-results.")
    if dry_run or options["complete"]:
        raise click.UsageError("--dry-run and --complete run the model: name it with --model.")
    for item in fields(PrecomputeConfig):
        if item.name in MODEL_ONLY and options[item.name] != default_of(item):
            raise click.UsageError(
                f"--{item.name.replace('_', '-')} applies to runs of the model: name the model with --model, or leave "
                "the option out."
            )
    from ..data.importer import import_results
    from .render import render_import_report

    report = import_results(
        options["from_results"],
        options["out"],
        datasets=options["datasets"],
        strict=options["strict"],
        metric=options["metrics"],
        seed=options["seed"],
        progress=ConsoleProgress(),
    )
    emit(report.to_dict(), as_json, render_import_report)
