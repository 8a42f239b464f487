"""Where the numbers of a page come from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ...evaluation.report import EvaluationReport
from ..figures.source import ReportSource


class Facts(NamedTuple):
    """Facts under one heading: name and value."""

    title: str
    rows: tuple[tuple[str, str], ...]


def controllers_of(report: EvaluationReport) -> dict[str, Mapping[str, Any]]:
    """Returns what the report records about each set of controllers, by name."""
    recorded = report.controllers
    if "settings" in recorded:  # of `validate`, which reports on one
        return {report.subjects[0]: recorded}
    return recorded


def provenance(source: ReportSource) -> list[Facts]:
    return [_cache(source), *_datasets(source), *_controllers(source), _evaluation(source)]


def _cache(source: ReportSource) -> Facts:
    manifest, space = source.cache.manifest, source.cache.space
    device = ", ".join(f"{name} {value}" for name, value in (manifest.device or {}).items())
    timing = f"{manifest.latency_mode}, batch size 1"
    if manifest.runs:
        timing += f", {manifest.latency_statistic or 'median'} of {manifest.runs} runs"
    positions = [position for position in space.insertion_positions if position is not None]
    rows = {
        "cache": shown_path(source.cache.source),
        "cache fingerprint": source.cache.fingerprint,
        "model": manifest.model_name,
        "model fingerprint": manifest.fingerprint,
        "number type": manifest.dtype,
        "device": device or None,
        "latencies": timing,
        "image tiers": ", ".join(space.tiers),
        "insertion positions": _listed(positions),
        "experts per token": _listed(space.top_k),
        "blocks run": f"{_listed(space.num_blocks)} of {manifest.n_blocks}",
        "budgets": f"{', '.join(f'{budget:g}' for budget in manifest.budgets_ms)} ms",
        "made by": manifest.created_by,
        "made at": manifest.created_at,
    }
    return _facts("Cache", rows)


def _datasets(source: ReportSource) -> list[Facts]:
    counted = source.cache.samples.group_by("dataset").len().sort("dataset").rows()
    records = source.cache.manifest.datasets or {}
    rows = {
        name: "; ".join(
            [f"{count:,} questions"]
            + [f"{key} {records[name][key]}" for key in ("metric", "source") if records.get(name, {}).get(key)]
        )
        for name, count in counted
    }
    return [_facts("Datasets", rows)]


def _controllers(source: ReportSource) -> list[Facts]:
    found = []
    for name, record in controllers_of(source.report).items():
        settings = record.get("settings") or {}
        counts = record.get("parameters") or {}
        rows = {
            "path": shown_path(str(record["path"])) if record.get("path") else None,
            "trained on cache": record.get("trained_on_cache"),
            "parameters": ", ".join(f"{part} {count:,}" for part, count in counts.items()) or None,
            **{
                key.replace("_", " ").replace("best", "kept"): settings.get(key)
                for key in ("recipe", "estimator", "seed", "epochs", "best_epoch", "fold_seed")
            },
        }
        found.append(_facts(f"Controllers: {name}", rows))
    return found


def _evaluation(source: ReportSource) -> Facts:
    from .... import __version__

    report = source.report
    rows = {
        "questions": source.basis.counted,
        "intervals": f"{source.basis.intervals}, seed {report.seed}",
        "reward": ", ".join(f"{name} {value:g}" for name, value in report.reward_weights.items()),
        "page made by": f"knobctl {__version__}",
    }
    return _facts("Evaluation", rows)


def shown_path(path: str) -> str:
    """Returns a path relative to the current folder where it is inside: a shared page need not tell who made it."""
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path


def _facts(title: str, rows: Mapping[str, Any]) -> Facts:
    return Facts(title, tuple((name, str(value)) for name, value in rows.items() if value not in (None, "")))


def _listed(values: Any) -> str | None:
    return ", ".join(map(str, values)) or None
