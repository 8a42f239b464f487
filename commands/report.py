"""`knobctl report`: a page for people, about a cache and its controllers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..console import ConsoleProgress, emit
from .options import command_line, json_option, report_options, sources_option, split_option
from .values import PATH, PATH_OR_NAME


@click.command()
@click.argument("cache", type=PATH)
@click.argument("controllers", nargs=-1, type=PATH_OR_NAME)
@click.option("--out", type=PATH, default=Path("report.html"), show_default=True, help="The page to write.")
@click.option("--figures", type=PATH, help="Also write every figure to this folder, as SVG and PNG.")
@click.option(
    "--live-report",
    type=PATH,
    help="JSON report of `validate --live --json`: compares live latencies with the cache's.",
)
@click.option("--no-images", "show_images", is_flag=True, default=True, flag_value=False, help="Show no images.")
@click.option("--images", type=PATH, help="Folder of the images.  [default: as recorded in the cache]")
@sources_option
@split_option
@report_options
@json_option
def report(cache: Path, controllers: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Write one HTML page about CACHE and CONTROLLERS...: headline, figures, tables, questions, provenance.

    The page is a single file that loads nothing from elsewhere. Without CONTROLLERS it reports on the baselines.
    Needs matplotlib: pip install 'knobctl[report]'.

    knobctl report runs/cache runs/controllers --out report.html --figures figures
    """
    from ..replay.report.page.write import write_report
    from .render import render_record

    found = write_report(cache, controllers, made_by=command_line(), progress=ConsoleProgress(), **options)
    emit(found.to_dict(), as_json, lambda record: render_record(record["headline"], _shown(record)))


def _shown(record: Any) -> dict[str, Any]:
    """Returns what a terminal shows of the result."""
    left_out = "; ".join(f"{title}: {reason}" for title, reason in record["left_out"].items())
    return {
        "page": record["page"],
        "size": f"{record['bytes'] / 1e6:.2f} MB",
        "figures": ", ".join(record["figures"]),
        **({"left out": left_out} if left_out else {}),
        **({"figure files": f"{len(record['figure_files'])}"} if record["figure_files"] else {}),
        "images": record["images"],
    }
