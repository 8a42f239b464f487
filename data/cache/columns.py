"""Converts Parquet columns written by any program to numpy arrays; errors name file, row and column.

Programs write the same values in different types: large_string or dictionary for a string, int64 or a float for an
int8, a list for a fixed-size list. A column is accepted if it converts without changing a value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..errors import CacheError


@dataclass(frozen=True)
class PartColumn:
    """One column of one part, or a range of its rows that begins at row `first_row` of the file."""

    path: Path
    name: str
    values: pa.ChunkedArray
    first_row: int = 0

    def refuse(self, row: int | np.integer[Any] | None, what: str) -> NoReturn:
        """Raises CacheError for a row, counted from 0 in `values`, or for the whole column when `row` is None."""
        where = (
            f"column {self.name!r}"
            if row is None
            else f"row {self.first_row + int(row)} (from 0), column {self.name!r}"
        )
        raise CacheError(f"{self.path}: {where}: {what}")

    def refuse_first(self, wrong: NDArray[np.bool_], what: str) -> None:
        """Raises CacheError for the first row where `wrong` [rows] is true; `{}` in `what` becomes that row's value."""
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            value = self.values[row].as_py()
            shown = repr(value[:80]) if isinstance(value, str) else str(value)
            self.refuse(row, what.replace("{}", shown, 1))  # not str.format: names in `what` may contain braces

    def nulls(self) -> NDArray[np.bool_]:
        """Returns which rows are null, [rows]."""
        if self.values.null_count == 0:
            return np.zeros(len(self.values), bool)
        return np.asarray(self.values.is_null().combine_chunks().to_numpy(zero_copy_only=False), dtype=bool)

    def no_nulls(self) -> None:
        """Raises CacheError for the first null."""
        if self.values.null_count:
            self.refuse_first(self.nulls(), "null, but the format requires a value")


def check_schema(path: Path, found: pa.Schema, required: pa.Schema, optional: pa.Schema) -> None:
    """Raises CacheError for a column that is missing, repeated or of an unsuitable type; ignores unknown columns."""
    for field in (*required, *optional):
        count = found.names.count(field.name)
        if count > 1:
            raise CacheError(f"{path}: column {field.name!r} occurs {count} times")
        if count == 0:
            if field.name in required.names:
                raise CacheError(f"{path}: column {field.name!r} is missing")
            continue
        problem = mismatch(found.field(field.name).type, field.type)
        if problem:
            raise CacheError(f"{path}: column {field.name!r} {problem}")


def mismatch(found: pa.DataType, wanted: pa.DataType) -> str | None:
    """Returns why a column of type `found` cannot be read as `wanted`; None when it can."""
    if pa.types.is_dictionary(found):
        return mismatch(found.value_type, wanted)
    if pa.types.is_null(found):  # a column of nulls only; whether nulls are allowed is checked with the rows
        return None
    if pa.types.is_string(wanted):
        return None if _is_string(found) else f"is {found}, not a string"
    if pa.types.is_integer(wanted):
        return None if _is_number(found) else f"is {found}, not a whole number"
    if pa.types.is_floating(wanted):
        return None if _is_number(found) else f"is {found}, not a number"
    if not _is_list(found):
        return f"is {found}, not a list"
    inner = mismatch(found.value_type, wanted.value_type)
    if inner:
        return f"is a list whose entry type {inner}"
    if (
        pa.types.is_fixed_size_list(wanted)
        and pa.types.is_fixed_size_list(found)
        and found.list_size != wanted.list_size
    ):
        return f"has vectors of {found.list_size} numbers, but the model's d_model is {wanted.list_size}"
    return None


def _is_number(kind: pa.DataType) -> bool:
    """Includes decimals: SQL programs write a literal such as 0.5 as a decimal."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _is_string(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_list(kind: pa.DataType) -> bool:
    views = pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind)
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind) or views)


def typed(column: PartColumn, wanted: pa.DataType) -> pa.ChunkedArray:
    """Returns an optional column as the format's type, nulls kept. Raises CacheError for negative and infinite ones."""
    if column.values.type == wanted and not (pa.types.is_integer(wanted) or pa.types.is_floating(wanted)):
        return column.values
    missing = column.nulls()
    if pa.types.is_integer(wanted):
        whole = whole_numbers(column, null=0)
        column.refuse_first(whole < 0, "{} is negative")
        column.refuse_first(whole >= 2**31, "{} is too large")
        return pa.chunked_array([pa.array(whole, wanted, mask=missing)])
    if pa.types.is_floating(wanted):
        real = real_numbers(column)
        column.refuse_first(real < 0, "{} is negative")
        return pa.chunked_array([pa.array(real, wanted, mask=missing)])
    return column.values.cast(wanted)


def codes(column: PartColumn, names: pa.Array, unknown: str) -> NDArray[np.int64]:
    """Returns the index in `names` of each row's string, [rows]. Raises CacheError for nulls and for other strings.

    `unknown` is the message for a string that is not in `names`; `{}` in it becomes the string.
    """
    column.no_nulls()
    pieces = []
    for chunk in column.values.chunks:
        if pa.types.is_dictionary(chunk.type):  # look up each distinct string once
            lookup = _index_in(chunk.dictionary, names)
            pieces.append(lookup[np.asarray(chunk.indices)])
        else:
            pieces.append(_index_in(chunk, names))
    code = np.concatenate(pieces) if pieces else np.zeros(0, np.int64)
    column.refuse_first(code < 0, unknown)
    return code


def _index_in(values: pa.Array, names: pa.Array) -> NDArray[np.int64]:
    if pa.types.is_null(values.type):
        return np.full(len(values), -1, np.int64)
    index = pc.index_in(values.cast(pa.string()), value_set=names).fill_null(-1)
    return np.asarray(index, dtype=np.int64)


def whole_numbers(column: PartColumn, *, null: int | None = None) -> NDArray[np.int64]:
    """Returns int64 [rows]. Nulls become `null`, or raise CacheError when it is None, as 3.5 and NaN do."""
    missing = column.nulls()
    if null is None:
        column.no_nulls()
    elif missing.all():
        return np.full(len(missing), null, np.int64)
    value = _numpy(column.values)
    if value.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            column.refuse_first(
                ~missing & ~(np.isfinite(value) & (value == np.floor(value))), "{} is not a whole number"
            )
            column.refuse_first(~missing & (np.abs(value) > 2**53), "{} is too large")
        value = np.where(missing, 0, value)
    elif value.dtype == np.uint64:
        column.refuse_first(~missing & (value > 2**53), "{} is too large")
    return np.where(missing, 0 if null is None else null, value).astype(np.int64)


def real_numbers(column: PartColumn) -> NDArray[np.float32]:
    """Returns float32 [rows], NaN where the value is null. Raises CacheError for NaN and infinity in the file."""
    missing = column.nulls()
    if missing.all():
        return np.full(len(missing), np.nan, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        value = _numpy(column.values).astype(np.float32)
    column.refuse_first(~missing & ~np.isfinite(value), "{} is not a finite float32 (write a missing number as null)")
    return np.where(missing, np.float32(np.nan), value)


def _numpy(values: pa.ChunkedArray) -> NDArray[Any]:
    """Returns numbers [rows] of any numpy type; those at nulls are arbitrary."""
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if pa.types.is_decimal(values.type):
        values = values.cast(pa.float64())
    array = values.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    if array.null_count:
        array = array.fill_null(0) if not pa.types.is_float16(array.type) else array.cast(pa.float32()).fill_null(0)
    return np.asarray(array.to_numpy(zero_copy_only=False))


def vectors(column: PartColumn, width: int, dtype: Any) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Returns vectors [rows, width] of `dtype`, and which rows are null, [rows]; their numbers are arbitrary.

    Raises CacheError for a vector of another length, and for nulls, NaN, infinity and overflow of `dtype` in one.
    """
    missing = column.nulls()
    if missing.all():
        return np.zeros((len(missing), width), dtype), missing
    pieces = [_vectors(column, chunk, start, width) for start, chunk in _with_starts(column.values)]
    with np.errstate(over="ignore", invalid="ignore"):
        value = (np.concatenate(pieces) if len(pieces) != 1 else pieces[0]).astype(dtype, copy=False)
    finite = _finite_rows(value) | missing
    if not finite.all():
        column.refuse(
            np.flatnonzero(~finite)[0], f"the vector contains NaN, infinity or a number too large for {value.dtype}"
        )
    return value, missing


def _with_starts(values: pa.ChunkedArray) -> list[tuple[int, pa.Array]]:
    starts = np.cumsum([0, *(len(chunk) for chunk in values.chunks)])
    return [(int(start), chunk) for start, chunk in zip(starts, values.chunks, strict=False) if len(chunk)]


def _vectors(column: PartColumn, chunk: pa.Array, start: int, width: int) -> NDArray[Any]:
    kind = chunk.type
    if pa.types.is_dictionary(kind):
        chunk = chunk.dictionary_decode()
    if pa.types.is_null(chunk.type):
        return np.zeros((len(chunk), width), np.float16)
    if not pa.types.is_fixed_size_list(chunk.type):
        length = np.asarray(pc.list_value_length(chunk).fill_null(width), dtype=np.int64)
        wrong = length != width
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            column.refuse(start + row, f"the vector has {length[row]} numbers, but d_model is {width}")
        if chunk.null_count:
            chunk = chunk.cast(pa.large_list(chunk.type.value_type))
            return _scatter(column, chunk, start, width)
        flat = chunk.flatten()
    elif chunk.null_count:
        return _scatter(column, chunk, start, width)
    else:
        flat = chunk.flatten()
    return _rows_of(column, flat, np.arange(start, start + len(chunk)), width)


def _scatter(column: PartColumn, chunk: pa.Array, start: int, width: int) -> NDArray[Any]:
    valid = np.flatnonzero(np.asarray(chunk.is_valid().to_numpy(zero_copy_only=False), dtype=bool))
    dense = chunk.take(pa.array(valid)).flatten()
    rows = _rows_of(column, dense, start + valid, width)
    out = np.zeros((len(chunk), width), rows.dtype)
    out[valid] = rows
    return out


def _rows_of(column: PartColumn, flat: pa.Array, row: NDArray[np.int64], width: int) -> NDArray[Any]:
    if flat.null_count:
        inner = np.flatnonzero(np.asarray(flat.is_null().to_numpy(zero_copy_only=False), dtype=bool))
        column.refuse(row[inner[0] // width], "the vector contains a null")
    if pa.types.is_dictionary(flat.type):
        flat = flat.dictionary_decode()
    return np.asarray(flat.to_numpy(zero_copy_only=False)).reshape(len(row), width)


def _finite_rows(value: NDArray[Any]) -> NDArray[np.bool_]:
    """Returns which rows contain only finite numbers, [rows]."""
    if value.dtype == np.float16:  # tests bits, because numpy would convert each number first
        bits = value.view(np.uint16) & np.uint16(0x7C00)  # an exponent of all ones is NaN or infinity
        return np.asarray(bits.max(axis=1, initial=0) != 0x7C00)
    return np.asarray(np.isfinite(value).all(axis=1))


def concatenate(pieces: Sequence[NDArray[Any]], dtype: Any) -> NDArray[Any]:
    """`np.concatenate` that also accepts an empty sequence, for which it returns an empty array of `dtype`."""
    return np.concatenate(pieces) if pieces else np.zeros(0, dtype)
