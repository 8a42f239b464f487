"""Makes a picture of a report's page: `python -m knobctl.tools.report_picture report.html docs/images/report.png`."""

from __future__ import annotations

from pathlib import Path

import click

from .chromium import browser, opened


@click.command()
@click.argument("page", type=click.Path(path_type=Path, exists=True))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--width", default=1280, show_default=True, help="Width of the window in pixels.")
@click.option("--height", default=900, show_default=True, help="Height of the window in pixels.")
@click.option("--dark", is_flag=True, help="The dark colours.")
@click.option("--whole", is_flag=True, help="The whole page, not only its first screen.")
def main(page: Path, out: Path, width: int, height: int, dark: bool, whole: bool) -> None:
    """Write a PNG of PAGE, a file of `knobctl report`, to OUT."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with browser() as started, opened(started, page, width=width, height=height, dark=dark) as shown:
        shown.screenshot(path=out, full_page=whole)


if __name__ == "__main__":
    main()
