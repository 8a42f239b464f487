"""Turns columns that any program wrote into numpy arrays, or says which file, row and column is wrong.

Programs differ in how they write the same thing: large_string or dictionary for a string, int64 or a float for an
int8, a list for a fixed-size list. What can be read without changing a value is read; nothing else is.
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
    """One column of one part, or of some of its rows, the first of which is `first_row` in the file."""

    path: Path
    name: str
    values: pa.ChunkedArray
    first_row: int = 0

    def refuse(self, row: int | np.integer[Any] | None, what: str) -> NoReturn:
        """Raises CacheError. `row` counts from 0 in the file; None speaks of the whole column."""
        where = (
            f"column {self.name!r}"
            if row is None
            else f"row {self.first_row + int(row)} (from 0), column {self.name!r}"
        )
        raise CacheError(f"{self.path}: {where}: {what}")

    def refuse_first(self, wrong: NDArray[np.bool_], what: str) -> None:
        """Raises CacheError for the first row where `wrong`; `{}` in `what` becomes the value there."""
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            value = self.values[row].as_py()
            shown = repr(value[:80]) if isinstance(value, str) else str(value)
            self.refuse(row, what.replace("{}", shown, 1))  # no str.format: names in `what` may hold braces

    def nulls(self) -> NDArray[np.bool_]:
        if self.values.null_count == 0:
            return np.zeros(len(self.values), bool)
        return np.asarray(self.values.is_null().combine_chunks().to_numpy(zero_copy_only=False), dtype=bool)

    def no_nulls(self) -> None:
        if self.values.null_count:
            self.refuse_first(self.nulls(), "null, where the format needs a value")


def check_schema(path: Path, found: pa.Schema, required: pa.Schema, optional: pa.Schema) -> None:
    """Raises CacheError for a column that is missing or whose type cannot stand for the format's; ignores others."""
    for field in (*required, *optional):
        count = found.names.count(field.name)
        if count > 1:
            raise CacheError(f"{path}: column {field.name!r} is there {count} times")
        if count == 0:
            if field.name in required.names:
                raise CacheError(f"{path}: column {field.name!r} is missing")
            continue
        problem = mismatch(found.field(field.name).type, field.type)
        if problem:
            raise CacheError(f"{path}: column {field.name!r} {problem}")


def mismatch(found: pa.DataType, wanted: pa.DataType) -> str | None:
    """Returns what keeps a column of type `found` from being read as `wanted`; None when it can be."""
    if pa.types.is_dictionary(found):
        return mismatch(found.value_type, wanted)
    if pa.types.is_null(found):  # a column of nulls only; whether nulls may stand there is seen with the rows
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
        return f"is a list whose entry {inner}"
    if (
        pa.types.is_fixed_size_list(wanted)
        and pa.types.is_fixed_size_list(found)
        and found.list_size != wanted.list_size
    ):
        return f"holds vectors of {found.list_size}, but the model's width (d_model) is {wanted.list_size}"
    return None


def _is_number(kind: pa.DataType) -> bool:
    """SQL programs write a literal such as 0.5 as a decimal."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _is_string(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_list(kind: pa.DataType) -> bool:
    views = pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind)
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind) or views)


def typed(column: PartColumn, wanted: pa.DataType) -> pa.ChunkedArray:
    """Returns an optional column as the format's type, nulls kept. Counts and times are finite and not negative."""
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
    """Returns where each row's string stands in `names`. A null or a string that is not there is refused."""
    column.no_nulls()
    pieces = []
    for chunk in column.values.chunks:
        if pa.types.is_dictionary(chunk.type):  # look each distinct string up once
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
    """Returns int64 [rows]; nulls become `null`, or are refused when it is None. 3.5 and NaN are refused."""
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
    """Returns float32 [rows], NaN where the value is null. NaN and infinity themselves are refused: missing is null."""
    missing = column.nulls()
    if missing.all():
        return np.full(len(missing), np.nan, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        value = _numpy(column.values).astype(np.float32)
    column.refuse_first(~missing & ~np.isfinite(value), "{} is no finite float32 (a missing number is null)")
    return np.where(missing, np.float32(np.nan), value)


def _numpy(values: pa.ChunkedArray) -> NDArray[Any]:
    """Numbers as numpy, whatever stands at nulls; dictionaries are unpacked."""
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
    """Returns vectors [rows, width] of `dtype` and which rows are null; a null row's numbers mean nothing.

    A vector of another length, a null inside one, NaN, infinity and what overflows `dtype` are refused.
    """
    missing = column.nulls()
    if missing.all():
        return np.zeros((len(missing), width), dtype), missing
    pieces = [_vectors(column, chunk, start, width) for start, chunk in _with_starts(column.values)]
    with np.errstate(over="ignore", invalid="ignore"):
        value = (np.concatenate(pieces) if len(pieces) != 1 else pieces[0]).astype(dtype, copy=False)
    finite = _finite_rows(value) | missing
    if not finite.all():
        column.refuse(np.flatnonzero(~finite)[0], f"the vector holds NaN, infinity or more than {value.dtype} can")
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
        column.refuse(row[inner[0] // width], "the vector holds a null")
    if pa.types.is_dictionary(flat.type):
        flat = flat.dictionary_decode()
    return np.asarray(flat.to_numpy(zero_copy_only=False)).reshape(len(row), width)


def _finite_rows(value: NDArray[Any]) -> NDArray[np.bool_]:
    """Which rows hold only finite numbers. float16 is judged by its bits: numpy would convert each number first."""
    if value.dtype == np.float16:
        bits = value.view(np.uint16) & np.uint16(0x7C00)  # an exponent of all ones is NaN or infinity
        return np.asarray(bits.max(axis=1, initial=0) != 0x7C00)
    return np.asarray(np.isfinite(value).all(axis=1))


def concatenate(pieces: Sequence[NDArray[Any]], dtype: Any) -> NDArray[Any]:
    """`np.concatenate` that also knows what nothing looks like."""
    return np.concatenate(pieces) if pieces else np.zeros(0, dtype)
