"""`knobctl importance`: measures or imports importance scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..console import ConsoleProgress, emit, log
from ..precompute.run.config import PrecomputeConfig
from .config_options import config_options
from .options import json_option
from .values import PATH

MEASURED_WITH = {"model", "datasets", "samples", "seed", "metrics", "max_new_tokens", "data_root", "source_split"}
MEASURED_WITH |= {"column", "skip_bad", "revision", "device", "dtype", "images", "prompt"}


@click.group()
def importance() -> None:
    """Importance scores: accuracy lost when one block is left out."""


@importance.command("measure")
@config_options(PrecomputeConfig, only=MEASURED_WITH)
@click.option("--out", type=PATH, required=True, help="JSON file to write, for `precompute --importance`.")
@json_option
def importance_measure(out: Path, as_json: bool, **options: Any) -> None:
    """Measure the scores: 5 runs over disjoint subsets of the training split, middle tier, native top-k.

    knobctl importance measure --model nano --dataset easy_vqa --samples 300 --out runs/importance.json --device cpu
    """
    from ..precompute.run.importance import run_importance
    from .render import render_importance

    emit(
        run_importance(PrecomputeConfig(out=out, **options), out, progress=ConsoleProgress()),
        as_json,
        render_importance,
    )


@importance.command("import")
@click.argument("files", nargs=-1, required=True, type=PATH)
@click.option("--out", type=PATH, required=True, help="JSON file to write, for `precompute --importance`.")
@click.option("--method", help="Method to read, if the file holds several.")
@click.option(
    "--reverse", is_flag=True, help="Negate the scores: in the file, low values mean important (median_rank)."
)
@click.option("--blocks", default=16, show_default=True, help="Number of blocks of the model.")
@json_option
def importance_import(
    files: tuple[Path, ...], out: Path, method: str | None, reverse: bool, blocks: int, as_json: bool
) -> None:
    """Read scores of another program, in any known layout, or the sensitivity_block_<i>.json files of one run.

    knobctl importance import merged.json --out runs/importance.json
    """
    from ..data.importer import import_importance, save_importance
    from .render import render_importance

    scores = import_importance(files, method=method, reverse=reverse, n_blocks=blocks)
    save_importance(scores, out)
    emit(scores.to_dict(), as_json, render_importance)
    log(f"written to {out}")
