"""The Parquet files of a cache: where they lie, how they are opened without trusting them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import CacheError

SAMPLES = "samples"
OUTCOMES = "outcomes"
TOKENS = "latency_tokens"
TABLES = (TOKENS, OUTCOMES, SAMPLES)  # in the order in which a part is committed
ENCODER_NAME = "budget_encoder.safetensors"

# Bounds on what Thrift may allocate while reading a footer of unknown origin.
MAX_FOOTER_STRING = 64 * 2**20
MAX_FOOTER_ITEMS = 4 * 2**20


def part_paths(cache: Path, table: str) -> list[Path]:
    """Returns the parts of `table` in the order of their names; none when its directory is absent."""
    return sorted(path for path in (cache / table).glob("part-*.parquet"))


def check_inside(cache: Path, path: Path) -> None:
    """Raises CacheError when `path`, links followed, is no file inside the cache."""
    if not path.is_file():
        raise CacheError(f"{path} is missing or not a file")
    if not path.resolve().is_relative_to(cache.resolve()):
        raise CacheError(f"{path} leads out of the cache, to {path.resolve()}: a cache's files lie inside it")


@contextmanager
def parquet_errors(path: Path) -> Iterator[None]:
    """Turns what pyarrow says of a damaged file into one error that names it."""
    try:
        yield
    except (pa.ArrowException, OSError) as cause:
        reason = " ".join(str(cause).split())
        raise CacheError(
            f"{path} is damaged or no Parquet file ({reason[:300]}). Restore it from a copy, or make the cache anew."
        ) from cause


def open_part(cache: Path, path: Path, read_dictionary: Sequence[str] = (), buffer_size: int = 0) -> pq.ParquetFile:
    """Opens a part; page checksums, where it has them, are checked as pages are read.

    buffer_size: read column chunks through buffers of so many bytes; 0 reads a chunk at once.
    """
    check_inside(cache, path)
    with parquet_errors(path):
        return pq.ParquetFile(
            path,
            page_checksum_verification=True,
            read_dictionary=list(read_dictionary),
            buffer_size=buffer_size,
            pre_buffer=buffer_size == 0,
            thrift_string_size_limit=MAX_FOOTER_STRING,
            thrift_container_size_limit=MAX_FOOTER_ITEMS,
        )


def read_part(cache: Path, path: Path, columns: Sequence[str]) -> pa.Table:
    """Reads `columns` of a part, all of which it must have."""
    file = open_part(cache, path)
    with file, parquet_errors(path):
        missing = [name for name in columns if name not in file.schema_arrow.names]
        if missing:
            raise CacheError(f"{path}: column {missing[0]!r} is missing")
        return file.read(columns=list(columns))


def sha256_file(path: Path) -> str:
    """Returns the file's digest as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
