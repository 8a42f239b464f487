"""From the evaluation of a cache to the text of a page. All text is escaped; drawings are inserted as they are."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..drawing.style import css_variables, inline_svg, require_matplotlib, svg
from ..figures.cells import DataTable
from ..figures.source import ReportSource, label
from ..gallery import LeftOut, MadeFigure
from .headline import Headline
from .policy_tables import at_a_glance, policy_tables
from .provenance import provenance
from .questions import Questions
from .recorded_commands import commands
from .thumbnails import LONGEST_SIDE

if TYPE_CHECKING:
    from markupsafe import Markup

FOLDER = Path(__file__).resolve().parent


class ShownFigure(NamedTuple):
    """A figure as the template shows it."""

    name: str
    title: str
    svg: Markup
    caption: str
    table: DataTable


def build_page(
    source: ReportSource,
    headline: Headline,
    figures: list[MadeFigure],
    left_out: list[LeftOut],
    questions: Questions | None,
    *,
    show_images: bool,
    made_by: tuple[str, ...],
) -> str:
    """Returns the page. The same arguments give the same text. Raises KnobctlError if the extra `report` is missing.

    Args:
        show_images: whether cards have a place for an image.
        made_by: the commands that made the page.
    """
    require_matplotlib()
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup, escape

    shown = [
        ShownFigure(
            one.name,
            one.title,
            Markup(inline_svg(svg(one.draw), one.name, str(escape(f"{one.title}. {one.record.caption}")))),
            one.record.caption,
            one.record.table,
        )
        for one in figures
    ]
    script = (FOLDER / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    light, dark = css_variables()
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["unbroken"] = unbroken
    return environment.get_template("page.html").render(
        headline=headline,
        eyebrow=f"{source.cache.manifest.model_name} · {_device(source)}{source.basis.counted}",
        basis=source.basis.with_intervals,
        glance=at_a_glance(source),
        figures=shown,
        left_out=left_out,
        tables=policy_tables(source),
        descriptions=[(label(name), policy.description) for name, policy in source.report.policies.items()],
        questions=questions,
        show_images=show_images,
        longest_side=LONGEST_SIDE,
        warnings=source.report.warnings,
        facts=provenance(source),
        commands=commands(source, made_by),
        script=Markup(script),
        script_digest=digest,
        css=Markup((FOLDER / "page.css").read_text(encoding="utf-8")),
        light=Markup(light),
        dark=Markup(dark),
    )


def unbroken(text: str) -> str:
    """Returns text in which no line breaks between a number and its unit."""
    return re.sub(r"(\d) (%|ms)", "\\1\u00a0\\2", text)


def _device(source: ReportSource) -> str:
    name = (source.cache.manifest.device or {}).get("name")
    return f"latencies of {name} · " if isinstance(name, str) else ""
