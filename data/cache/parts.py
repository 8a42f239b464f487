"""The Parquet files of a cache, its parts: their paths, and how to open them as untrusted files."""

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
COMPANION_KEY = (
    b"knobctl.sha256."  # + table: in a samples file's metadata, the digest of the file with the same name there
)
ENCODER_NAME = "budget_encoder.safetensors"
REMEDY = "Restore it from a copy, or make the cache again."

# Bounds on what Thrift may allocate while it reads an untrusted footer.
MAX_FOOTER_STRING = 64 * 2**20
MAX_FOOTER_ITEMS = 4 * 2**20
# A column chunk that claims to unpack to more than this, and to so many times its size, is a decompression bomb.
UNPACKED_BYTES = 2**30
UNPACKED_RATIO = 1000
THREADED_ROWS = 1 << 15


def part_paths(cache: Path, table: str) -> list[Path]:
    """Returns the parts of `table`, sorted by name; none when its directory is missing."""
    return sorted(path for path in (cache / table).glob("part-*.parquet"))


def check_inside(cache: Path, path: Path) -> None:
    """Raises CacheError unless `path`, after following links, is a file inside the cache."""
    if not path.is_file():
        raise CacheError(f"{path} is missing or is not a file")
    if path.parent.parent == cache and not path.is_symlink() and not path.parent.is_symlink():
        return  # inside by construction; resolving hundreds of paths takes longer than reading the files
    if not path.resolve().is_relative_to(cache.resolve()):
        raise CacheError(f"{path} leads out of the cache, to {path.resolve()}: a cache's files must be inside it")


@contextmanager
def parquet_errors(path: Path) -> Iterator[None]:
    """Turns pyarrow's errors about a damaged file into a CacheError that names it."""
    try:
        yield
    except (pa.ArrowException, OSError) as cause:
        reason = " ".join(str(cause).split())
        raise CacheError(f"{path} is damaged or not a Parquet file ({reason[:300]}). {REMEDY}") from cause


def open_part(cache: Path, path: Path, read_dictionary: Sequence[str] = (), buffer_size: int = 0) -> pq.ParquetFile:
    """Opens a part. Page checksums, where it has them, are checked as pages are read.

    Args:
        cache: The cache's directory, in which the part must be.
        path: The part.
        read_dictionary: Columns to read as dictionaries.
        buffer_size: Read column chunks through buffers of this many bytes; 0 reads each chunk in one piece.

    Raises:
        CacheError: The file is missing, outside the cache, damaged, or a decompression bomb.
    """
    check_inside(cache, path)
    with parquet_errors(path):
        file = pq.ParquetFile(
            path,
            page_checksum_verification=True,
            read_dictionary=list(read_dictionary),
            buffer_size=buffer_size,
            pre_buffer=False,  # its threads help with remote storage; with a local disk they cost more than they save
            thrift_string_size_limit=MAX_FOOTER_STRING,
            thrift_container_size_limit=MAX_FOOTER_ITEMS,
        )
        for group in map(file.metadata.row_group, range(file.metadata.num_row_groups)):
            for chunk in map(group.column, range(group.num_columns)):
                size = chunk.total_uncompressed_size
                if size > UNPACKED_BYTES and size > UNPACKED_RATIO * chunk.total_compressed_size:
                    raise CacheError(
                        f"{path}: column {chunk.path_in_schema!r} claims to unpack to {size:,} bytes, more than "
                        f"{UNPACKED_RATIO:,} times its size"
                    )
        return file


def read_columns(file: pq.ParquetFile, columns: Sequence[str]) -> pa.Table:
    """Reads columns of an open part. Small parts are read without threads, which take longer to start."""
    return file.read(columns=list(columns), use_threads=file.metadata.num_rows > THREADED_ROWS)


def read_part(cache: Path, path: Path, columns: Sequence[str]) -> pa.Table:
    """Reads `columns` of a part. Raises CacheError when one is missing."""
    file = open_part(cache, path)
    with file, parquet_errors(path):
        missing = [name for name in columns if name not in file.schema_arrow.names]
        if missing:
            raise CacheError(f"{path}: column {missing[0]!r} is missing")
        return read_columns(file, columns)


def companion_digests(cache: Path, samples_part: Path) -> dict[str, str]:
    """Returns the digests of a part's other files that its `samples` file records: path in the cache -> sha256."""
    with open_part(cache, samples_part) as file:
        metadata = file.schema_arrow.metadata or {}
    found = {table: metadata.get(COMPANION_KEY + table.encode()) for table in (TOKENS, OUTCOMES)}
    return {f"{table}/{samples_part.name}": digest.decode() for table, digest in found.items() if digest is not None}


def sha256_file(path: Path) -> str:
    """Returns the file's sha256 as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
