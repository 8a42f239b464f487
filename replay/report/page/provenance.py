"""Where the numbers of a page come from, and the commands that make them again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from ....data.errors import KnobctlError
from ...evaluation.report import EvaluationReport
from ...recipes import RECIPE_ONLY, RECIPES, TrainConfig
from ...reward import RewardWeights
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
        "cache": shown_path(str(source.cache.path)),
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
                key.replace("_", " "): settings.get(key)
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


def commands(source: ReportSource, made_by: tuple[str, ...]) -> list[str]:
    """Returns the commands that check the cache, train the controllers and make the page, as far as they are known."""
    cache = shown_path(str(source.cache.path))
    trained = [
        _train_command(cache, shown_path(str(record["path"])), record.get("settings") or {})
        for record in controllers_of(source.report).values()
        if record.get("path") and record.get("trained_on_cache") == source.cache.fingerprint
    ]
    known = dict.fromkeys(command for command in trained if command)  # seeds of one run share its command
    return [shlex.join(["knobctl", "inspect", cache, "--verify"]), *known, *made_by]


def _train_command(cache: str, path: str, settings: Mapping[str, Any]) -> str | None:
    """Returns the command of a training run; None if its settings cannot be given as options."""
    names = {item.name for item in fields(TrainConfig)}
    try:
        config = TrainConfig.from_dict({name: value for name, value in settings.items() if name in names})
    except (KnobctlError, TypeError):
        return None
    recipe = RECIPES.get(config.recipe)
    if recipe is None:
        return None
    out = Path(path)
    seeds = ",".join(map(str, config.seeds))
    words = ["knobctl", "train", cache, "--out", str(out.parent if len(config.seeds) > 1 else out)]
    words += ["--recipe", config.recipe, *(["--seeds", seeds] if len(config.seeds) > 1 else ["--seed", seeds])]
    for item in fields(TrainConfig):
        value = getattr(config, item.name)
        if item.name in ("recipe", "seeds", "reward_weights") or value == getattr(recipe, item.name):
            continue
        if item.name in RECIPE_ONLY or value is None or value is False:
            return None
        option = f"--{item.name.replace('_', '-')}"
        words += [option] if value is True else [option, str(value)]
    for weight in fields(RewardWeights):
        value = getattr(config.reward_weights, weight.name)
        if value != getattr(recipe.reward_weights, weight.name):
            words += [f"--reward-{weight.name}", str(value)]
    return shlex.join(words)


def shown_path(path: str) -> str:
    """Returns a path relative to the current folder where it is inside: a shared page need not tell who made it."""
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path


def _facts(title: str, rows: Mapping[str, Any]) -> Facts:
    return Facts(title, tuple((name, str(value)) for name, value in rows.items() if value not in (None, "")))


def _listed(values: Any) -> str | None:
    return ", ".join(map(str, values)) or None
