"""`knobctl serve`: an OpenAI-compatible server for one pair of controllers and model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..console import ConsoleProgress, log
from ..serving.http.config import ServerConfig
from ..serving.http.security import read_api_key
from .config_options import config_options
from .options import engine_options
from .values import PATH, PATH_OR_NAME


@click.command()
@click.argument("controllers", type=PATH_OR_NAME)
@config_options(ServerConfig)
@click.option(
    "--api-key-file",
    type=PATH,
    help="File whose first line is the API key.  [default: the environment variable KNOBCTL_API_KEY]",
)
@engine_options
def serve(
    controllers: str,
    api_key_file: Path | None,
    model: str | None,
    revision: str | None,
    device: str | None,
    dtype: str | None,
    task: str | None,
    within: float | None,
    **options: Any,
) -> None:
    """Serve CONTROLLERS and their model to OpenAI clients: /v1/chat/completions with an image and a latency budget.

    Requests are answered one at a time, the earliest deadline first, because latencies are those of batch size 1. A
    request's time in the queue counts against its budget. Needs the extra: pip install 'knobctl[serve]'.

    knobctl serve runs/controllers --default-budget-ms 25
    """
    config = ServerConfig(api_key=read_api_key(api_key_file), **options)
    try:
        from ..serving.http.server import serve as run
    except ModuleNotFoundError as error:
        raise click.ClickException(f"{error}: pip install 'knobctl[serve]'") from error
    from ..serving.engine import Engine

    engine = Engine(
        controllers,
        model,
        revision=revision,
        device=device,
        dtype=dtype,
        task=task,
        within=within,
        progress=ConsoleProgress(),
    )
    try:
        run(engine, config, lambda url: log(f"serving {engine.model_name} at {url}/v1"))
    finally:
        engine.close()
