"""`knobctl answer`: one question about one image, or many from a file, each within a latency budget."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..console import ConsoleProgress, emit, log
from ..data.errors import KnobctlError
from .options import engine_options, json_option
from .values import PATH, PATH_OR_NAME

if TYPE_CHECKING:
    from ..serving.engine import Engine


@click.command()
@click.argument("controllers", type=PATH_OR_NAME)
@click.option("--image", type=PATH, help="The image file.")
@click.option("--question", help="The question about it.")
@click.option("--budget-ms", type=float, help="Latency budget in ms; with --input, of requests that name none.")
@click.option("--explain", is_flag=True, help="Also show what the controllers considered, on stderr or in the JSON.")
@click.option(
    "--input",
    "requests_file",
    type=PATH,
    help="Many requests: a JSONL file with image, question and optionally budget_ms, task, max_new_tokens, id.",
)
@click.option("--out", type=PATH, help="JSONL file of the answers to --input; what it has is not answered again.")
@click.option("--images", type=PATH, help="Folder that image paths in --input are relative to.  [default: its own]")
@click.option("--max-new-tokens", type=click.IntRange(1), help="Longest answer, in tokens.  [default: the task's]")
@click.option(
    "--on-miss",
    type=click.Choice(["fastest", "refuse"]),
    default="fastest",
    show_default=True,
    help="What to do if no setting is expected to meet the budget: answer with the fastest, or refuse.",
)
@engine_options
@json_option
def answer(
    controllers: str,
    image: Path | None,
    question: str | None,
    budget_ms: float | None,
    explain: bool,
    requests_file: Path | None,
    out: Path | None,
    images: Path | None,
    max_new_tokens: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Answer a question about an image with CONTROLLERS and their model, within a latency budget.

    The answer is printed on stdout; the setting and the latency on stderr.

    \b
    knobctl answer runs/controllers --image photo.png --question "Is there a circle?" --task easy_vqa --budget-ms 24
    knobctl answer runs/controllers --input requests.jsonl --out answers.jsonl --task easy_vqa --budget-ms 24
    """
    single = (image, question, budget_ms)
    if requests_file is None and (None in single or out is not None or images is not None):
        raise click.UsageError("give --image, --question and --budget-ms, or --input and --out.")
    if requests_file is not None and (out is None or image is not None or question is not None or explain):
        raise click.UsageError("--input needs --out, and goes without --image, --question and --explain.")
    if requests_file is not None and max_new_tokens is not None:
        raise click.UsageError("with --input, name max_new_tokens in the requests.")
    from ..serving.batch import read_requests

    requests = None if requests_file is None else read_requests(requests_file, budget_ms=budget_ms, images=images)
    from ..serving.engine import Engine

    engine = Engine(controllers, progress=ConsoleProgress(), **options)
    if requests is None:
        assert image is not None
        assert question is not None
        assert budget_ms is not None
        _answer_one(engine, image, question, budget_ms, max_new_tokens, explain, as_json)
        return
    from ..serving.batch import run_batch
    from .render import render_record

    assert out is not None
    report = run_batch(engine, requests, out, progress=ConsoleProgress())
    counts = {"requests": report.requests, "answered": report.answered, "answered before": report.resumed}
    emit(report.to_dict(), as_json, lambda _: render_record(str(out), {**counts, "failed": len(report.failed)}))
    if report.failed:
        raise KnobctlError(
            f"{len(report.failed)} of {report.requests} requests have no answer, for the reasons above; the same "
            "command tries them again."
        )


def _answer_one(
    engine: Engine,
    image: Path,
    question: str,
    budget_ms: float,
    max_new_tokens: int | None,
    explain: bool,
    as_json: bool,
) -> None:
    made, explanation = engine.explain(image, question, budget_ms, max_new_tokens=max_new_tokens)
    if as_json:
        record = made.to_dict() | ({"explanation": explanation.to_dict()} if explain else {})
        emit(record, True, lambda _: None)
        return
    click.echo(made.text)
    log(made.summary())
    longest_ms = max(engine.controllers.budgets_ms)
    if budget_ms > longest_ms:
        log(f"note: the controllers were trained for budgets up to {longest_ms:g} ms, and choose as for that one.")
    if explain:
        from rich.console import Console

        from ..console import MIN_WIDTH
        from .render import render_explanation

        Console(stderr=True, width=MIN_WIDTH).print(render_explanation(explanation.to_dict()))
