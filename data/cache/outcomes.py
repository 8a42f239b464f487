"""The `outcomes` table as dense [S, X] arrays: a cell for each sample under each setting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..errors import CacheError
from ..knobs import KnobSpace
from ..schema import outcomes_schema
from .columns import PartColumn, check_schema, codes, concatenate, real_numbers, typed, whole_numbers
from .file_list import Listing
from .parts import open_part, parquet_errors, read_columns


@dataclass(eq=False)
class OutcomeRows:
    """Accuracy and latency of every cell, and its row in the parts, so that other columns can be read later."""

    cache: Path
    paths: Sequence[Path]
    accuracy_SX: NDArray[np.float32]
    latency_ms_SX: NDArray[np.float32]
    row_SX: NDArray[np.int64]  # row, counted over all parts in order; -1 where there is none
    _columns: dict[str, pa.ChunkedArray | None] = field(default_factory=dict)
    _dense: dict[str, NDArray[Any] | None] = field(default_factory=dict)

    @property
    def without_rows(self) -> int:
        """Number of samples without any row."""
        return int((self.row_SX < 0).all(axis=1).sum())

    def column(self, name: str) -> NDArray[Any] | None:
        """See `Cache.outcome_column`."""
        if name not in self._dense:
            values = self.values(name)
            self._dense[name] = None if values is None else self._spread(values)
        return self._dense[name]

    def value(self, name: str, sample: int, setting: int) -> Any:
        """Returns one cell of an optional column as a Python value; None when it is missing."""
        values, row = self.values(name), int(self.row_SX[sample, setting])
        return None if values is None or row < 0 else values[row].as_py()

    @property
    def runs(self) -> NDArray[np.float32] | None:
        """See `Cache.latency_runs_ms_SXR`."""
        values = self.values("latency_runs_ms")
        if values is None:
            return None
        lists = pa.concat_arrays(values.chunks) if values.num_chunks else pa.array([], values.type)
        length = np.asarray(pc.list_value_length(lists).fill_null(0), dtype=np.int64)
        width = int(length.max(initial=0))
        padded = np.full((len(length) + 1, width), np.nan, np.float32)  # the last row is that of index -1: missing
        padded[:-1][np.arange(width) < length[:, None]] = np.asarray(lists.flatten())
        return padded[self.row_SX]

    def values(self, name: str) -> pa.ChunkedArray | None:
        """Returns an optional column over all rows, checked; None when no part has it."""
        if name not in self._columns:
            self._columns[name] = self._read(name)
        return self._columns[name]

    def _read(self, name: str) -> pa.ChunkedArray | None:
        fields = outcomes_schema()[1]
        if name not in fields.names:
            raise ValueError(f"{name!r} is not an optional column of outcomes: {fields.names}")
        wanted = fields.field(name).type
        pieces: list[pa.Array] = []
        found = False
        for path in self.paths:
            with open_part(self.cache, path) as file, parquet_errors(path):
                if name in file.schema_arrow.names:
                    found = True
                    column = PartColumn(path, name, file.read(columns=[name]).column(0))
                    pieces.extend(_checked(column, wanted).chunks)
                else:
                    pieces.append(pa.nulls(file.metadata.num_rows, wanted))
        return pa.chunked_array(pieces, wanted) if found else None

    def _spread(self, values: pa.ChunkedArray) -> NDArray[Any]:
        missing = self.row_SX < 0
        is_number = pa.types.is_integer(values.type) or pa.types.is_floating(values.type)
        if not len(values):
            return np.full(missing.shape, np.nan, np.float32) if is_number else np.full(missing.shape, None, object)
        row = np.where(missing, 0, self.row_SX)
        if is_number:
            dense = values.cast(pa.float32(), safe=False).to_numpy()[row]  # counts beyond 2^24 are rounded
            return np.where(missing, np.float32(np.nan), dense)
        objects = np.empty(len(values), object)
        objects[:] = [
            None if v is None else np.asarray(v, np.float32) if isinstance(v, list) else v for v in values.to_pylist()
        ]
        dense = objects[row]
        dense[missing] = None
        return dense


def _checked(column: PartColumn, wanted: pa.DataType) -> pa.ChunkedArray:
    """Returns the column as `wanted`. Raises CacheError for a timed run that is not positive and finite."""
    if pa.types.is_list(wanted):
        lists = typed(column, wanted)
        flat = np.asarray(pc.list_flatten(lists).to_numpy(), np.float64)
        if not (np.isfinite(flat) & (flat > 0)).all():
            column.refuse(None, "the latency of a run must be a positive, finite number of ms")
        return lists
    return typed(column, wanted)


def read_outcomes(
    cache: Path, paths: Sequence[Path], space: KnobSpace, sample_ids: pa.Array, listing: Listing
) -> OutcomeRows:
    """Reads accuracy and latency of all rows into [S, X]. Raises CacheError for unknown keys and duplicates."""
    required, optional = outcomes_schema()
    shape = (len(sample_ids), len(space.settings))
    cells, accuracies, latencies, lengths = [], [], [], []
    for path in paths:
        with open_part(cache, path, read_dictionary=["sample_id", "tier"]) as file:
            check_schema(path, file.schema_arrow, required, optional)
            if file.metadata.num_rows > shape[0] * shape[1]:
                raise CacheError(
                    f"{path} has {file.metadata.num_rows:,} rows, more than {shape[0]} samples x {shape[1]} settings"
                )
            with parquet_errors(path):
                table = read_columns(file, required.names)
        listing.check_rows(path, table.num_rows)
        columns = {name: PartColumn(path, name, table.column(name)) for name in required.names}
        sample = codes(columns["sample_id"], sample_ids, "sample {} is not in the table `samples`")
        cells.append(sample * shape[1] + setting_index(columns, space))
        accuracies.append(_accuracy(columns["accuracy"]))
        latencies.append(_latency(columns["latency_ms"]))
        lengths.append(table.num_rows)
    cell = concatenate(cells, np.int64)
    _refuse_double(paths, lengths, cell, space, sample_ids)
    row_SX = np.full(shape, -1, np.int64)
    row_SX.reshape(-1)[cell] = np.arange(len(cell))
    dense = []
    for pieces in (accuracies, latencies):
        value_SX = np.full(shape, np.nan, np.float32)
        value_SX.reshape(-1)[cell] = concatenate(pieces, np.float32)
        dense.append(value_SX)
    return OutcomeRows(cache, paths, dense[0], dense[1], row_SX)


def setting_index(columns: dict[str, PartColumn], space: KnobSpace) -> NDArray[np.int64]:
    """Returns each row's index in `space.settings`."""
    tier = codes(columns["tier"], pa.array(space.tiers), f"tier {{}} is not one of the manifest's {list(space.tiers)}")
    position = position_index(columns["insertion_position"], space)
    top_k = _value_index(columns["top_k"], space.top_k)
    num_blocks = _value_index(columns["num_blocks"], space.num_blocks)
    found = space.setting_TPKN[tier, position, top_k, num_blocks]
    columns["num_blocks"].refuse_first(
        found < 0, "{} blocks are fewer than the insertion position, so the setting cannot run"
    )
    return np.asarray(found, dtype=np.int64)


def position_index(column: PartColumn, space: KnobSpace) -> NDArray[np.int64]:
    """Returns each row's index in `space.insertion_positions`. All rows must be null if that is (None,), else none."""
    if space.insertion_positions == (None,):
        column.refuse_first(~column.nulls(), "{}, but the manifest has no insertion positions, so null was expected")
        return np.zeros(len(column.values), np.int64)
    return _value_index(column, [p for p in space.insertion_positions if p is not None])


def _value_index(column: PartColumn, values: Sequence[int]) -> NDArray[np.int64]:
    value = whole_numbers(column)
    order = np.argsort(values)
    ascending = np.asarray(values, np.int64)[order]
    place = np.minimum(np.searchsorted(ascending, value), len(ascending) - 1)
    column.refuse_first(ascending[place] != value, f"{{}} is not one of the manifest's {sorted(values)}")
    return np.asarray(order[place], dtype=np.int64)


def _accuracy(column: PartColumn) -> NDArray[np.float32]:
    value = real_numbers(column)
    column.refuse_first((value < 0) | (value > 1), "accuracy {} is outside 0 to 1")
    return value


def _latency(column: PartColumn) -> NDArray[np.float32]:
    value = real_numbers(column)
    column.refuse_first(value <= 0, "latency {} ms is not positive (write a missing latency as null)")
    return value


def locate(paths: Sequence[Path], lengths: Sequence[int], row: int) -> tuple[Path, int]:
    """Returns the part of a row that is counted over all parts, and the row's number in it."""
    ends = np.cumsum(lengths)
    part = int(np.searchsorted(ends, row, side="right"))
    return paths[part], row - int(ends[part] - lengths[part])


def first_double(key: NDArray[np.int64], size: int) -> tuple[int, int] | None:
    """Returns the first two rows with the same key; None when all keys, which are below `size`, differ."""
    # Counting is fast where keys are dense; for few rows in a vast (untrusted) space it would exhaust the memory.
    if not len(key) or (size <= 64 * len(key) and np.bincount(key, minlength=size).max() <= 1):
        return None
    order = np.argsort(key, kind="stable")
    second = np.flatnonzero(key[order][1:] == key[order][:-1]) + 1
    if not len(second):
        return None
    which = second[np.argmin(order[second])]
    return int(order[which - 1]), int(order[which])


def _refuse_double(
    paths: Sequence[Path], lengths: Sequence[int], cell: NDArray[np.int64], space: KnobSpace, sample_ids: pa.Array
) -> None:
    double = first_double(cell, len(sample_ids) * len(space.settings))
    if double is None:
        return
    (first_path, first_row), (path, row) = (locate(paths, lengths, row) for row in double)
    sample, setting = divmod(int(cell[double[1]]), len(space.settings))
    raise CacheError(
        f"{path}: row {row} (from 0), column 'sample_id': sample {sample_ids[sample].as_py()!r} under "
        f"{space.settings[setting]} also occurs in row {first_row} of {first_path}"
    )
