"""`knobctl inspect`, `rescore` and `merge`: what can be done with caches without the model."""

from __future__ import annotations

from pathlib import Path

import click

from ..console import emit, log
from ..data.errors import KnobctlError
from .options import json_option
from .values import PATH


@click.command()
@click.argument("cache", metavar="DIRECTORY", type=PATH)
@click.option("--verify", is_flag=True, help="Read every byte and compare it with the recorded digests.")
@click.option("--choices", type=PATH, help="Instead, check this file of choices against CACHE and show what it holds.")
@json_option
def inspect(cache: Path, verify: bool, choices: Path | None, as_json: bool) -> None:
    """Check a cache or controllers in DIRECTORY, and show what they hold.

    \b
    knobctl inspect runs/cache --verify
    knobctl inspect runs/cache --choices runs/choices.parquet
    knobctl inspect runs/controllers

    For a cache: shape, provenance, knobs, accuracy and latency by knob, completeness. For controllers, whose digests
    are always checked: model, knobs, expected latencies, and what answering would lack.
    """
    if (cache / "controllers.json").is_file():
        from ..controllers.describe import describe_controllers
        from .render import render_record

        emit(describe_controllers(cache), as_json, lambda record: render_record("controllers", record))
        return
    from ..data.cache.describe import describe_cache
    from ..data.cache.verify import verify_cache
    from .render import render_cache, render_record

    if verify:
        problems = verify_cache(cache)
        if problems:
            raise KnobctlError("\n".join(str(problem) for problem in problems))
        log(f"{cache}: every file matches its recorded digest")
    if choices is not None:
        from ..data.cache.reader import open_cache
        from ..replay.evaluation.choices import check_choices

        emit(check_choices(choices, open_cache(cache)), as_json, lambda record: render_record("choices", record))
        return
    emit(describe_cache(cache), as_json, render_cache)


@click.command()
@click.argument("cache", type=PATH)
@click.option("--metric", "metrics", multiple=True, required=True, metavar="[DATASET=]METRIC", help="The new metric.")
@click.option("--out", type=PATH, required=True, help="Directory of the new cache; the old one is not changed.")
@json_option
def rescore(cache: Path, metrics: tuple[str, ...], out: Path, as_json: bool) -> None:
    """Recompute accuracy from stored answers, without the model.

    knobctl rescore runs/cache --metric vqa_simple --out runs/rescored
    """
    from ..data.rescore import metrics_from_options
    from ..data.rescore import rescore as run
    from .render import render_record

    report = run(cache, metrics_from_options(metrics), out)
    for warning in report.warnings:
        log(warning)
    emit(report.to_dict(), as_json, lambda record: render_record("rescored", record["datasets"]))


@click.command()
@click.argument("shards", nargs=-1, required=True, type=PATH)
@click.option("--out", type=PATH, required=True, help="Directory of the merged cache.")
@json_option
def merge(shards: tuple[Path, ...], out: Path, as_json: bool) -> None:
    """Join the SHARDS of one run into one cache.

    knobctl merge runs/shard-0 runs/shard-1 --out runs/cache
    """
    from ..data.cache.describe import describe_cache
    from ..data.cache.merge import merge_caches
    from .render import render_cache

    merge_caches(shards, out)
    emit(describe_cache(out), as_json, render_cache)
