"""Writes every choice of a policy as Parquet, so that other programs can evaluate them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

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
