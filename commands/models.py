"""`knobctl check-model`: whether a model can be run under block plans, shown on its own weights."""

from __future__ import annotations

import click

from ..console import ConsoleProgress, emit
from ..data.errors import KnobctlError
from .options import json_option
from .values import PATH_OR_NAME


@click.command()
@click.argument("model", type=PATH_OR_NAME)
@click.option("--revision", help="Revision of a model from the hub.")
@click.option("--device", default="cuda", show_default=True, help="cuda, cuda:1, ... or cpu.")
@click.option("--dtype", default="auto", show_default=True, help="auto, float32, bfloat16 or float16.")
@json_option
def check_model(model: str, revision: str | None, device: str, dtype: str, as_json: bool) -> None:
    """Load MODEL and check on its weights whether its blocks can be skipped and run with fewer experts.

    knobctl check-model nano --device cpu
    """
    from ..precompute.run.model_report import report_on_model
    from .render import render_model

    record = report_on_model(model, revision=revision, device=device, dtype=dtype, progress=ConsoleProgress())
    emit(record, as_json, render_model)
    if record["refused"] is not None:
        raise KnobctlError(record["refused"])
