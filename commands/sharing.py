"""`knobctl push`: publishes a cache or controllers on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

import click

from ..console import emit, log
from .options import json_option
from .values import PATH


@click.command()
@click.argument("directory", type=PATH)
@click.argument("repo_id", metavar="OWNER/NAME")
@click.option("--private", is_flag=True, help="Create the repository private.")
@click.option("--dry-run", is_flag=True, help="Only list what would be published.")
@click.option(
    "--include-questions",
    is_flag=True,
    help="Publish a cache with questions, answers and image references, which are otherwise left out.",
)
@json_option
def push(directory: Path, repo_id: str, private: bool, dry_run: bool, include_questions: bool, as_json: bool) -> None:
    """Publish the cache or the controllers in DIRECTORY on the Hugging Face hub, with their card.

    \b
    knobctl push runs/controllers OWNER/NAME --dry-run
    knobctl push runs/cache OWNER/NAME --private

    Uses the login of `hf auth login` or HF_TOKEN. Files that the hub already has are not sent again.
    """
    from ..controllers.publish import publish
    from .render import render_push

    report = publish(directory, repo_id, private=private, dry_run=dry_run, include_questions=include_questions)
    for note in report.notes:
        log(note)
    emit(report.to_dict(), as_json, render_push)
