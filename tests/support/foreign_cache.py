"""Writes caches as another program would: from the format's page alone, with pyarrow, without the project's writer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from knobctl.data.knobs import KnobSpace
from knobctl.tests.support.make_cache import BUDGETS_MS, TINY_SPACE, outcome_table, sample_table, token_table

Edit = Callable[[pa.Table], pa.Table]
IDS = ["a/1", "a/2", "b/1", "b/2", "ü/3"]


def foreign_cache(
    path: Path,
    *,
    samples: Edit | None = None,
    outcomes: Edit | None = None,
    latency_tokens: Edit | None = None,
    manifest: Callable[[dict[str, Any]], None] | None = None,
    ids: list[str] = IDS,
    d_model: int = 4,
    space: KnobSpace = TINY_SPACE,
    budgets_ms: tuple[float, ...] = BUDGETS_MS,
    rows_per_part: int = 1 << 30,
    **parquet: Any,
) -> Path:
    """Writes required columns only, after each table's edit, and a manifest of required keys, after its edit."""
    tables = {
        "samples": sample_table(ids, d_model).select(["sample_id", "dataset", "split", "language_feature"]),
        "outcomes": outcome_table(ids, space).select(
            ["sample_id", "tier", "insertion_position", "top_k", "num_blocks", "accuracy", "latency_ms"]
        ),
        "latency_tokens": token_table(ids, space, budgets_ms, d_model),
    }
    for (name, table), edit in zip(tables.items(), (samples, outcomes, latency_tokens), strict=True):
        (path / name).mkdir(parents=True)
        edited = edit(table) if edit else table
        for number, start in enumerate(range(0, max(edited.num_rows, 1), rows_per_part)):
            pq.write_table(edited.slice(start, rows_per_part), path / name / f"part-{number}.parquet", **parquet)
    record: dict[str, Any] = {
        "format": "knobctl-cache",
        "version": 1,
        "model": {"name": "another", "d_model": d_model, "n_blocks": max(space.num_blocks), "native_top_k": 4},
        "knobs": space.to_dict(),
        "budgets_ms": list(budgets_ms),
        "latency_mode": "end_to_end",
    }
    if manifest:
        manifest(record)
    (path / "cache.json").write_text(json.dumps(record))
    return path


def put(name: str, column: Any, kind: pa.DataType | None = None) -> Edit:
    """An edit that replaces a column by values, an array, or what a function makes of the old one."""

    def edit(table: pa.Table) -> pa.Table:
        old = table.column(name)
        new = column(old) if callable(column) else column
        if not isinstance(new, pa.Array | pa.ChunkedArray):
            new = pa.array(new, kind or old.type)
        return table.set_column(table.column_names.index(name), name, new)

    return edit


def put_row(name: str, row: int, value: Any) -> Edit:
    """An edit that changes one value."""

    def change(old: pa.ChunkedArray) -> pa.Array:
        values = old.to_pylist()
        values[row] = value
        return pa.array(values, old.type)

    return put(name, change)


def cast(name: str, kind: pa.DataType) -> Edit:
    """An edit that writes a column in another type."""
    return put(name, lambda old: old.cast(kind))
