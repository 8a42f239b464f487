"""Colours, markers and sizes of all figures, and their output as SVG and PNG.

The series colours follow Okabe and Ito, who chose them to be distinct under all common colour vision deficiencies; some
are darker here, for a contrast of 3:1 with the background. Line styles and markers differ too, so that figures can be
read in grey. On a page, colours are CSS variables, which makes one drawing serve light and dark.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from ....data.errors import KnobctlError
from ..figures.source import label

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH_IN = 4.8
POINT_SIZE = 9.0


class Colour(NamedTuple):
    """A colour on a light and on a dark background."""

    light: str
    dark: str


COLOURS = {
    "ink": Colour("#1b1f24", "#e8eaed"),
    "muted": Colour("#59636e", "#9ba5b0"),
    "grid": Colour("#dfe3e8", "#333b44"),
    "cloud": Colour("#b4bcc6", "#566270"),
    "paper": Colour("#ffffff", "#16191d"),
    "raised": Colour("#f3f5f7", "#1f242a"),
    "good": Colour("#00684c", "#2dbf96"),  # of text
    "bad": Colour("#a84200", "#f08a3d"),
    "blue": Colour("#0072b2", "#4aa8e0"),
    "vermillion": Colour("#d55e00", "#f08a3c"),
    "green": Colour("#00805f", "#2dbf95"),
    "purple": Colour("#b5578f", "#d98dbb"),
    "amber": Colour("#b98300", "#e6b422"),
    "violet": Colour("#5b3fa0", "#ac94ea"),
    "sky": Colour("#2f93c8", "#7cc7ee"),
}
INK, MUTED, GRID, CLOUD, PAPER = (COLOURS[name].light for name in ("ink", "muted", "grid", "cloud", "paper"))


Dashes = str | tuple[float, tuple[float, ...]]


class Stroke(NamedTuple):
    """How one policy is drawn."""

    colour: str
    line: Dashes
    marker: str
    width: float = 1.4
    filled: bool = True


BASELINE_STROKES = {
    "oracle": Stroke(INK, "--", ""),
    "table": Stroke(COLOURS["amber"].light, "-.", "s"),
    "dataset_table": Stroke(COLOURS["green"].light, ":", "^"),
    "neighbours": Stroke(COLOURS["purple"].light, (0, (5, 1.5)), "D"),
    "neighbours_token": Stroke(COLOURS["purple"].light, (0, (1, 1)), "d", filled=False),
    "mlp_language": Stroke(COLOURS["sky"].light, (0, (3, 1, 1, 1)), "P"),
    "mlp_token": Stroke(COLOURS["sky"].light, (0, (3, 1, 1, 1, 1, 1)), "X", filled=False),
    "full": Stroke(MUTED, "-", "H"),
    "cheapest": Stroke(MUTED, ":", "v"),
    "best_fixed": Stroke(MUTED, "--", "*"),
    "random": Stroke(MUTED, (0, (1, 3)), "x"),
}
SUBJECT_STROKES = (
    Stroke(COLOURS["blue"].light, "-", "o", 2.2),
    Stroke(COLOURS["vermillion"].light, (0, (7, 1)), "p", 2.0),
    Stroke(COLOURS["violet"].light, (0, (4, 1, 1, 1)), "<", 2.0),
    Stroke(COLOURS["sky"].light, (0, (2, 1)), ">", 2.0),
)


def stroke(policy: str, subjects: tuple[str, ...]) -> Stroke:
    """Returns how a policy is drawn: the same in every figure."""
    if policy in BASELINE_STROKES:
        return BASELINE_STROKES[policy]
    return SUBJECT_STROKES[subjects.index(policy) % len(SUBJECT_STROKES) if policy in subjects else 0]


def legend_label(policy: str) -> str:
    """Returns a policy's name, shortened and escaped: matplotlib reads `$` as mathematics."""
    return plain(shortened(label(policy)))


def shortened(text: str, length: int = 34) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def plain(text: str) -> str:
    """Returns text that matplotlib draws as it is."""
    return text.replace("$", r"\$")


def require_matplotlib() -> None:
    """Raises KnobctlError if matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise KnobctlError("a report needs matplotlib and Jinja2: pip install 'knobctl[report]'") from error


def figure(height_in: float) -> Figure:
    """Returns an empty figure of the report's width. Draw and save it inside `style()`."""
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH_IN, height_in), layout="constrained")


@contextmanager
def style() -> Iterator[None]:
    """Applies fonts, colours and reproducible ids while the body draws and saves."""
    import matplotlib as mpl

    settings: dict[Any, Any] = {
        "font.size": POINT_SIZE,
        "axes.titlesize": POINT_SIZE,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.labelsize": POINT_SIZE,
        "xtick.labelsize": POINT_SIZE - 0.5,
        "ytick.labelsize": POINT_SIZE - 0.5,
        "legend.fontsize": POINT_SIZE - 0.5,
        "legend.frameon": False,
        "legend.handlelength": 2.6,
        "legend.columnspacing": 1.4,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": MUTED,
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": GRID,
        "grid.linewidth": 0.7,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "axes.facecolor": "none",
        "figure.facecolor": "none",
        "savefig.facecolor": "none",
        "svg.fonttype": "none",
        "svg.hashsalt": "knobctl",
        "text.usetex": False,
    }
    with mpl.rc_context(settings):
        yield


def svg(draw: Callable[[], Figure]) -> str:
    """Returns a drawing as an SVG file with the light colours. The same record gives the same text."""
    target = io.StringIO()
    with style():
        draw().savefig(
            target, format="svg", metadata={"Date": None, "Creator": None}, bbox_inches="tight", pad_inches=0.04
        )
    return target.getvalue()


def png(draw: Callable[[], Figure], dpi: int = 300) -> bytes:
    """Returns a drawing as a PNG on white, for papers and slides."""
    target = io.BytesIO()
    with style():
        draw().savefig(target, format="png", dpi=dpi, facecolor=PAPER, bbox_inches="tight", pad_inches=0.04)
    return target.getvalue()


def inline_svg(text: str, name: str, title: str) -> str:
    """Returns an SVG file as an element of a page: scalable, colours as CSS variables, ids that no other figure has.

    `title` is escaped HTML.
    """
    body = text[text.index("<svg") :]
    view_box = re.search(r'viewBox="([^"]*)"', body)
    assert view_box, "matplotlib writes a viewBox"
    body = body[body.index(">") + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    referenced = set(re.findall(r"#([\w-]+)", " ".join(re.findall(r'url\(#[^)]*\)|href="#[^"]*"', body))))
    body = re.sub(r' id="([^"]*)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in referenced else "", body)
    body = re.sub(r'(url\(#|href="#)', rf"\1{name}-", body)
    body = re.sub(r"<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r"(font: (?:bold |italic |\d+ )*[\d.]+px) [^;\"]*", rf"\1 {variable('font')}", body)
    body = re.sub(r"font-family: [^;\"]*", f"font-family: {variable('font')}", body)
    for colour, value in COLOURS.items():
        body = body.replace(value.light, variable(colour))
    body = re.sub(r"\n\s*", "\n", body)
    return (
        f'<svg role="img" aria-labelledby="{name}-title" viewBox="{view_box[1]}" '
        f'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
        f'<title id="{name}-title">{title}</title>{body}'
    )


def variable(name: str) -> str:
    """Returns the reference to a variable of the page's style sheet."""
    return f"var(--{name})"


def css_variables() -> tuple[str, str]:
    """Returns the declarations of all colours, for light and for dark."""
    light = "; ".join(f"--{name}: {value.light}" for name, value in COLOURS.items())
    dark = "; ".join(f"--{name}: {value.dark}" for name, value in COLOURS.items())
    return light, dark
