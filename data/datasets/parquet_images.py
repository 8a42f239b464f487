"""Images inside Parquet files, read one row at a time: a column of images is never held in memory as a whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import DatasetError
from .images import MAX_IMAGE_BYTES, image_file, short_name
from .remote_images import is_remote, remote_cell

# Row groups with a smaller image column are cached after their first read (at most two): neighbouring rows follow.
_KEPT_COLUMN_BYTES = 64 << 20
_STREAMED_ROWS = 16

# Limits on the memory that an untrusted file can make a reader allocate.
_FOOTER_STRING = 64 << 20
_FOOTER_ITEMS = 4 << 20
_UNPACKED_BYTES = 256 << 20
_UNPACKED_RATIO = 200

# polars reports some kinds of damage as a PanicException.
PARQUET_ERRORS = (pa.ArrowException, pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError)


@dataclass(frozen=True)
class ParquetImage:
    """The image in one row of a Parquet file, stored as a struct {bytes, path} or as bytes."""

    location: str  # a local path or a URL
    row: int  # within the file
    column: str
    ref: str  # `file.parquet#row`
    images: Path | None  # folder of the files that rows with a path instead of bytes refer to

    def read_bytes(self) -> bytes:
        """Returns the encoded image. Raises DatasetError, with file and row, if it cannot be read or is too large."""
        try:
            read = remote_cell if is_remote(self.location) else _local_cell
            cell = read(self.location, self.row, self.column)
        except PARQUET_ERRORS as error:
            raise DatasetError(
                f"image {self.ref}: {self.location}, row {self.row}, cannot be read ({first_line(error)}): "
                "copy the file again."
            ) from error
        data, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, Mapping) else (cell, None)
        if data is None and path:
            if self.images is None:
                raise DatasetError(f"image {self.ref} is a path, {short_name(path)!r}: name its folder with --images.")
            return image_file(self.images, path, f"image {self.ref}").read_bytes()
        if not isinstance(data, bytes):
            raise DatasetError(f"image {self.ref} has neither bytes nor a path: replace it.")
        if len(data) > MAX_IMAGE_BYTES:
            raise DatasetError(f"image {self.ref} has {len(data):,} bytes, and {MAX_IMAGE_BYTES:,} is the limit.")
        return data


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's text, shortened, for a one-line message."""
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def _local_cell(location: str, row: int, column: str) -> Any:
    stamp = Path(location).stat().st_mtime_ns  # part of the cache key, so a changed file is read again
    start = 0
    for group, (rows, column_bytes) in enumerate(_row_groups(location, stamp, column)):
        if row < start + rows:
            if column_bytes <= _KEPT_COLUMN_BYTES:
                return _row_group(location, stamp, group, column)[row - start].as_py()
            return _streamed_cell(location, group, row - start, column)
        start += rows
    raise OSError(f"the file has {start} rows")


@lru_cache(64)
def _row_groups(location: str, _stamp: int, column: str) -> tuple[tuple[int, int], ...]:
    """Returns (number of rows, decompressed bytes of the image column) of each row group."""
    with _open(location) as file:
        if column not in file.schema_arrow.names:
            raise OSError(f"the file has no column `{column}`")
        metadata = file.metadata
        groups = []
        for index in range(metadata.num_row_groups):
            group = metadata.row_group(index)
            chunks = (group.column(c) for c in range(group.num_columns))
            size = sum(c.total_uncompressed_size for c in chunks if c.path_in_schema.split(".")[0] == column)
            groups.append((group.num_rows, size))
        return tuple(groups)


def check_not_a_bomb(location: str) -> None:
    """Raises OSError for a local file with a column chunk that decompresses to far more than real data would."""
    with _open(location) as file:
        for index in range(file.metadata.num_row_groups):
            group = file.metadata.row_group(index)
            for chunk in (group.column(c) for c in range(group.num_columns)):
                size = chunk.total_uncompressed_size
                if size > _UNPACKED_BYTES and size > _UNPACKED_RATIO * chunk.total_compressed_size:
                    raise OSError(f"column `{chunk.path_in_schema}` unpacks to {size:,} bytes")


def _open(location: str, dictionaries: Sequence[str] = ()) -> pq.ParquetFile:
    return pq.ParquetFile(
        location,
        read_dictionary=list(dictionaries),
        page_checksum_verification=True,
        thrift_string_size_limit=_FOOTER_STRING,
        thrift_container_size_limit=_FOOTER_ITEMS,
    )


def _open_images(location: str, column: str) -> pq.ParquetFile:
    # Images that questions share are stored once; reading them as a dictionary keeps one copy in memory too.
    with _open(location) as file:
        leaves = [file.schema.column(index).path for index in range(len(file.schema.names))]
    return _open(location, [leaf for leaf in leaves if leaf in (column, f"{column}.bytes")])


@lru_cache(2)
def _row_group(location: str, _stamp: int, group: int, column: str) -> pa.ChunkedArray:
    with _open_images(location, column) as file:
        return file.read_row_group(group, columns=[column]).column(0)


def _streamed_cell(location: str, group: int, row: int, column: str) -> Any:
    with _open_images(location, column) as file:
        start = 0
        for batch in file.iter_batches(_STREAMED_ROWS, row_groups=[group], columns=[column]):
            if row < start + batch.num_rows:
                return batch.column(0)[row - start].as_py()
            start += batch.num_rows
    raise OSError(f"row group {group} has {start} rows")
