"""`knobctl report`: one HTML page about a cache and its controllers, and the figures as files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ....data.cache.reader import Cache, open_cache
from ....data.errors import KnobctlError
from ....data.files.atomic import write_atomically
from ....data.progress import SILENT, Progress
from ...evaluation.bootstrap import DEFAULT_RESAMPLES
from ...evaluation.compare import compare
from ...evaluation.report import EvaluationReport
from ...reward import RewardWeights
from ..drawing.style import png, require_matplotlib, svg
from ..figures.source import ReportSource
from ..gallery import MadeFigure, make_figures
from ..live_runs import LiveRun, live_run, read_live_report
from ..training_logs import read_training_log
from .build import build_page
from .headline import headline
from .provenance import controllers_of
from .questions import no_image, questions
from .thumbnails import Thumbnails


@dataclass(frozen=True)
class WrittenReport:
    """What was written."""

    page: str
    bytes: int
    headline: str
    figures: tuple[str, ...]  # on the page
    left_out: dict[str, str]  # title of a figure -> why it is not on the page
    figure_files: tuple[str, ...]
    images: int  # on the page
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def write_report(
    cache_path: str | Path,
    controllers_paths: Sequence[str | Path] = (),
    *,
    out: str | Path,
    figures: str | Path | None = None,
    report: EvaluationReport | None = None,
    live_report: str | Path | None = None,
    show_images: bool = True,
    images: Path | None = None,
    sources: Mapping[str, Path] | None = None,
    made_by: Sequence[str] = (),
    split: str = "test",
    budgets_ms: Sequence[float] | None = None,
    baselines: Sequence[str] | None = None,
    with_ablations: bool = False,
    weights: RewardWeights | None = None,
    resamples: int = DEFAULT_RESAMPLES,
    seed: int = 0,
    progress: Progress = SILENT,
) -> WrittenReport:
    """Writes a page about controllers, compared with the baselines, or about the baselines alone.

    Args:
        out: the page.
        figures: also write every figure to this folder, as `NAME.svg` and `NAME.png`.
        report: an evaluation on this cache that was already made, by `compare`, `validate_controllers` or
            `cross_validate`; the arguments from `split` to `seed` are then not used, nor `controllers_paths`.
        live_report: the JSON report of `knobctl validate --live --json`, for the figure of live latencies. By default
            the live run of `report`, if it has one.
        show_images: whether the page shows the images of questions.
        images, sources: the present places of images and of datasets' files, as in `validate --live`; by default those
            that the cache records.
        made_by: the commands that made the page, which it shows.
        split, budgets_ms, baselines, with_ablations, weights, resamples, seed: as in `compare`.
        progress: receives a step for each figure.

    Raises:
        KnobctlError: the extra `report` is not installed, the page cannot be written, or as `compare` does.
    """
    require_matplotlib()
    cache = open_cache(cache_path, tokens=False)
    if report is None:
        report = compare(
            cache_path,
            controllers_paths,
            split=split,
            budgets_ms=budgets_ms,
            baselines=baselines,
            with_ablations=with_ablations,
            weights=weights,
            resamples=resamples,
            seed=seed,
        )
    assert report.cache["fingerprint"] == cache.fingerprint, "the evaluation is of another cache"
    source = report_source(cache, report, None if live_report is None else Path(live_report))
    made, left_out = make_figures(source)
    read_image = Thumbnails(cache, images, sources or {}).of if show_images else no_image
    found = questions(source, read_image)
    first = headline(source)
    text = build_page(source, first, made, left_out, found, show_images=show_images, made_by=tuple(made_by))
    files = [] if figures is None else _write_figures(made, Path(figures), progress)
    data = text.encode("utf-8", "backslashreplace")
    _write(Path(out), data)
    cards = (*found.gains, *found.losses) if found else ()
    return WrittenReport(
        str(out),
        len(data),
        first.title,
        tuple(one.name for one in made),
        {one.title: one.reason for one in left_out},
        tuple(map(str, files)),
        sum(card.image is not None for card in cards),
        tuple(report.warnings),
    )


def report_source(cache: Cache, report: EvaluationReport, live_report: Path | None) -> ReportSource:
    """Returns what the page is made from: the evaluation, with the training logs that are beside the controllers."""
    logs = [
        read_training_log(name, Path(str(record["path"])), record.get("settings") or {})
        for name, record in controllers_of(report).items()
        if record.get("path")
    ]
    live: LiveRun | None = None
    if live_report is not None:
        live = read_live_report(live_report, cache)
    elif report.live is not None:
        live = live_run(report.live, "the report")
    return ReportSource(cache, report, tuple(log for log in logs if log is not None), live)


def _write_figures(made: Sequence[MadeFigure], folder: Path, progress: Progress) -> list[Path]:
    paths = []
    with progress.steps("figures", len(made)) as advance:
        for one in made:
            for path, data in (
                (folder / f"{one.name}.svg", svg(one.draw).encode()),
                (folder / f"{one.name}.png", png(one.draw)),
            ):
                _write(path, data)
                paths.append(path)
            advance()
    return paths


def _write(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data)
    except OSError as error:
        raise KnobctlError(
            f"{path} cannot be written ({error.strerror or error}): free space, or choose another place"
        ) from error
