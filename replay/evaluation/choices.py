"""Choices of a policy as Parquet, for other programs: writes them, and checks those that another program wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ...data.cache.reader import Cache
from ...data.errors import KnobctlError
from ...data.files.atomic import write_atomically
from ..tables import ReplayTables

CHOICES_SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("budget_ms", pa.float32()),
        ("tier", pa.string()),
        ("insertion_position", pa.int8()),  # null in imported results, which record no position
        ("top_k", pa.int8()),
        ("num_blocks", pa.int8()),
    ]
)


KNOB_COLUMNS = ["tier", "insertion_position", "top_k", "num_blocks"]


def choices_table(
    tables: ReplayTables, sample_N: NDArray[np.int64], budget_M: tuple[int, ...], setting_NM: NDArray[np.int64]
) -> pa.Table:
    """Returns one row per sample and budget: samples in the cache's order, budgets ascending."""
    settings = [tables.space.settings[index] for index in setting_NM.ravel()]
    budgets_ms = tables.budgets_ms_M[list(budget_M)]
    return pa.table(
        [
            np.repeat(np.array([tables.sample_ids[index] for index in sample_N], dtype=object), len(budget_M)),
            np.tile(budgets_ms, len(sample_N)),
            [setting.tier for setting in settings],
            [setting.insertion_position for setting in settings],
            [setting.top_k for setting in settings],
            [setting.num_blocks for setting in settings],
        ],
        schema=CHOICES_SCHEMA,
    )


def write_choices(
    path: Path,
    tables: ReplayTables,
    sample_N: NDArray[np.int64],
    budget_M: tuple[int, ...],
    setting_NM: NDArray[np.int64],
) -> None:
    """Writes a table of `CHOICES_SCHEMA` to `path`, replacing an existing file in full or not at all."""
    path = Path(path)
    content = pa.BufferOutputStream()
    pq.write_table(choices_table(tables, sample_N, budget_M, setting_NM), content)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, memoryview(content.getvalue()))
    except OSError as error:
        raise KnobctlError(f"cannot write the choices to {path}: {error.strerror or error}") from error


def check_choices(path: Path, cache: Cache) -> dict[str, Any]:
    """Checks a file of choices against the cache that they are about; returns what it holds as JSON.

    Raises:
        KnobctlError: the file cannot be read, lacks a column, names a sample, setting or budget that the cache does
            not have, or has two choices for one sample and budget. Names the first such row.
    """
    path = Path(path)
    try:
        found = pl.read_parquet(path, columns=CHOICES_SCHEMA.names)
    except (OSError, pl.exceptions.PolarsError) as cause:
        raise KnobctlError(f"{path} cannot be read as choices: {' '.join(str(cause).split())[:200]}") from cause
    settings = pl.DataFrame(
        [(s.tier, s.insertion_position, s.top_k, s.num_blocks) for s in cache.space.settings],
        schema={"tier": pl.String, **dict.fromkeys(KNOB_COLUMNS[1:], pl.Int64)},
        orient="row",
    )
    try:
        rows = found.with_columns(
            pl.col("sample_id", "tier").cast(pl.String),
            pl.col(*KNOB_COLUMNS[1:]).cast(pl.Int64),
            pl.col("budget_ms").cast(pl.Float32),
        ).with_row_index("row")
    except pl.exceptions.PolarsError as cause:
        raise KnobctlError(f"{path}: a column has another type: {' '.join(str(cause).split())[:200]}") from cause
    budgets = pl.Series(np.asarray(cache.budgets_ms, np.float32))
    for wrong, what in (
        (rows.filter(~pl.col("sample_id").is_in(list(cache.sample_ids))), "the cache has no such sample"),
        (rows.filter(~pl.col("budget_ms").is_in(budgets.implode())), "the budget is not in the cache's grid"),
        (rows.join(settings, on=KNOB_COLUMNS, how="anti", nulls_equal=True), "the cache has no such setting"),
        (rows.filter(pl.struct("sample_id", "budget_ms").is_duplicated()), "two choices for this sample and budget"),
    ):
        if len(wrong):
            first = wrong.sort("row").row(0, named=True)
            shown = ", ".join(f"{name} {first[name]}" for name in CHOICES_SCHEMA.names)
            raise KnobctlError(f"{path}: row {first['row']} (from 0): {what}: {shown}")
    return {
        "file": str(path),
        "choices": len(rows),
        "samples": rows["sample_id"].n_unique(),
        "budgets_ms": sorted(rows["budget_ms"].unique().to_list()),
        "knobs": {
            name: {str(value): count / len(rows) for value, count in sorted(rows[name].value_counts().iter_rows())}
            for name in KNOB_COLUMNS
        },
    }
