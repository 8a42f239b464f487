"""The summary of a cache that `knobctl inspect` shows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ..knobs import KnobSetting
from .accuracy import accuracy_warnings
from .location import cache_name
from .parts import TABLES, part_paths
from .reader import Cache, open_cache
from .unpacked_tokens import DERIVED_NAME

KNOBS: dict[str, Callable[[KnobSetting], Any]] = {
    "tier": lambda setting: setting.tier,
    "insertion_position": lambda setting: setting.insertion_position,
    "top_k": lambda setting: setting.top_k,
    "num_blocks": lambda setting: setting.num_blocks,
}


def describe_cache(path: Path) -> dict[str, Any]:
    """Returns shape, provenance, knob space, marginals of accuracy and latency, size on disk and completeness as JSON.

    Means and percentiles are over the cells that have a value; None where no cell has one. Raises CacheError as
    `open_cache` does.
    """
    cache = open_cache(path)
    manifest = cache.manifest
    return {
        "path": cache_name(cache.path),
        "fingerprint": cache.fingerprint,
        "shape": {
            "samples": len(cache.sample_ids),
            "settings": len(cache.space.settings),
            "budgets": len(cache.budgets_ms),
            "d_model": cache.d_model,
        },
        "samples": _sample_counts(cache),
        "knobs": cache.space.to_dict(),
        "budgets_ms": list(manifest.budgets_ms),
        "provenance": _provenance(cache),
        "completeness": completeness(cache),
        "overall": _cells(cache, np.ones(len(cache.space.settings), bool)),
        "marginals": {name: _marginal(cache, name) for name in KNOBS},
        "size_bytes": _sizes(cache.path),
        "warnings": [*cache.warnings, *accuracy_warnings(cache)],
    }


def _sample_counts(cache: Cache) -> list[dict[str, Any]]:
    grouped = cache.samples.group_by("dataset", "split").agg(pl.len().alias("samples")).sort("dataset", "split")
    return list(grouped.to_dicts())


def _provenance(cache: Cache) -> dict[str, Any]:
    manifest = cache.manifest
    record = manifest.to_dict()
    names: tuple[str, ...] = (
        "model",
        "latency_mode",
        "device",
        "importance",
        "runs",
        "latency_statistic",
        "latency_check",
    )
    names += ("prompt_template", "max_new_tokens", "datasets", "created_by", "created_at")
    known = {name: record[name] for name in names if name in record}
    extra = {**manifest.extra}
    if isinstance(shards := extra.pop("shards", None), list):
        extra |= {"shards": len(shards), **_summed_shards([shard for shard in shards if isinstance(shard, dict)])}
    return {**known, "budget_encoder": cache.budget_encoder_path is not None, **extra}


def _summed_shards(shards: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns what the shards of a merged cache did, added up, and the latency check of each."""
    found: dict[str, Any] = {"execution": _sum([shard.get("execution") for shard in shards])}
    checks = [shard["latency_check"] for shard in shards if isinstance(shard.get("latency_check"), dict)]
    if checks:
        found["latency_check"] = {f"shard {place}": check for place, check in enumerate(checks)}
    return {name: value for name, value in found.items() if value is not None}


def _sum(values: list[Any]) -> Any:
    """Adds numbers, and mappings of numbers entry by entry; of anything else, returns what all agree on, or None."""
    records = [value for value in values if isinstance(value, dict)]
    if records and len(records) == len(values):
        return {name: _sum([record[name] for record in records if name in record]) for name in records[0]}
    if values and all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return sum(values)
    return values[0] if values and all(value == values[0] for value in values) else None


def completeness(cache: Cache) -> dict[str, Any]:
    """Returns how many outcomes, latencies and tokens exist, and how many the knob space and the grid allow."""
    timed = ~np.isnan(cache.latency_ms_SX)
    tokens = None
    if cache.tokens is not None:
        present = cache.tokens.present_STPM
        tokens = {"there": int(present.sum()), "of": int(present.size)}
    return {
        "outcomes": {"there": int(cache.present_SX.sum()), "of": int(cache.present_SX.size)},
        "latencies": {"there": int(timed.sum()), "of": int(timed.size)},
        "latency_tokens": tokens,
        "samples_without_outcomes": int((~cache.present_SX.any(axis=1)).sum()),
        "settings_without_outcomes": int((~cache.present_SX.any(axis=0)).sum()),
    }


def _marginal(cache: Cache, name: str) -> list[dict[str, Any]]:
    values = [KNOBS[name](setting) for setting in cache.space.settings]
    return [
        {"value": value, **_cells(cache, np.array([other == value for other in values]))}
        for value in dict.fromkeys(values)
    ]


def _cells(cache: Cache, chosen_X: np.ndarray[Any, np.dtype[np.bool_]]) -> dict[str, Any]:
    accuracy = cache.accuracy_SX[:, chosen_X]
    latency_ms = cache.latency_ms_SX[:, chosen_X]
    accuracy, latency_ms = accuracy[~np.isnan(accuracy)], latency_ms[~np.isnan(latency_ms)]
    p5, p50, p95 = np.percentile(latency_ms, [5, 50, 95]).tolist() if len(latency_ms) else (None, None, None)
    return {
        "outcomes": len(accuracy),
        "accuracy": float(accuracy.mean(dtype=np.float64)) if len(accuracy) else None,
        "latency_ms": float(latency_ms.mean(dtype=np.float64)) if len(latency_ms) else None,
        "latency_ms_p5": p5,
        "latency_ms_p50": p50,
        "latency_ms_p95": p95,
    }


def _sizes(path: Path) -> dict[str, int]:
    """Returns the bytes of each table, of all files together, and of unpacked tokens, which may be removed."""
    sizes = {table: sum(part.stat().st_size for part in part_paths(path, table)) for table in reversed(TABLES)}
    everything = {file: file.stat().st_size for file in path.rglob("*") if file.is_file()}
    derived = sum(size for file, size in everything.items() if file.is_relative_to(path / DERIVED_NAME))
    return {**sizes, "derived": derived, "total": sum(everything.values()) - derived}
