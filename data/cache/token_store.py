"""Latency tokens as one memory-mapped float16 array, unpacked from the parts on first use.

Parquet files cannot be memory-mapped as arrays, so the tokens are unpacked once into `<cache>/derived/<key>/`, which
may be removed at any time. The key covers the parts' digests and the layout, so a store of older parts is never used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..errors import CacheError
from ..schema import latency_tokens_schema
from .columns import PartColumn, check_schema, codes, real_numbers, vectors
from .file_list import CHANGED, Listing
from .manifest import Manifest
from .outcomes import first_double, locate, position_index
from .parts import REMEDY, TOKENS, open_part, parquet_errors, read_columns, sha256_file
from .unpacked_tokens import MappedTokens, build_store, find_store

LAYOUT = 1  # of the unpacked array; part of its key
KEY_COLUMNS = ("sample_id", "tier", "insertion_position", "budget_ms")
BATCH_BYTES = 16 * 2**20  # of float16 tokens per batch
MAX_TOKENS = 1 << 31


@dataclass(eq=False)
class TokenStore:
    """The tokens of a cache. Their keys are checked when the cache is opened, their numbers when they are unpacked.

    Axes: S samples, T tiers, P insertion positions, M budgets, D d_model, as in `Cache`.
    """

    cache: Path
    paths: Sequence[Path]
    shape: tuple[int, int, int, int, int]
    _key: str
    _digests: dict[str, str]  # file name -> sha256 as the manifest lists it; empty when it lists none
    _derived: Path | None
    _mapped: MappedTokens | None
    _cells: list[NDArray[np.int64]] = field(default_factory=list)  # see `_TokenRows`; empty when a store was found
    _nulls_possible: bool = False

    @property
    def present_STPM(self) -> NDArray[np.bool_]:
        """Whether there is a token, [S, T, P, M]."""
        if self._mapped is None and self._nulls_possible:
            return self._map().present_STPM
        if self._mapped is not None:
            return self._mapped.present_STPM
        present = np.zeros(int(np.prod(self.shape[:4])), bool)
        for cell in self._cells:
            present[cell] = True
        return present.reshape(self.shape[:4])

    @property
    def token_STPMD(self) -> np.memmap:
        """All tokens, [S, T, P, M, D], read-only float16, NaN where there is none. The first use unpacks them.

        Raises:
            CacheError: A token has another width or numbers that are not finite (names file and row), the digest of a
                part differs, or the disk is full.
        """
        return self._map().token_STPMD

    def unpack(self) -> Path:
        """Unpacks the tokens unless this is done, and returns the directory that contains them."""
        return self._map().directory

    def _map(self) -> MappedTokens:
        if self._mapped is None:
            self._mapped = build_store(self.cache, self._key, self.shape, self._derived, self.paths, self.batches())
            pa.default_memory_pool().release_unused()  # hundreds of MB at full size, which training needs
        return self._mapped

    def batches(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float16]]]:
        """Yields (cells, tokens) over all parts: indices into the flattened [S, T, P, M], and tokens [rows, D]."""
        width = self.shape[4]
        rows_at_once = max(1, BATCH_BYTES // (2 * width))
        for path, cell in zip(self.paths, self._cells, strict=True):
            wanted = self._digests.get(path.name)
            if wanted is not None and sha256_file(path) != wanted:
                raise CacheError(f"{path} {CHANGED}. {REMEDY}")
            row = 0
            with open_part(self.cache, path, buffer_size=1 << 20) as file, parquet_errors(path):
                for batch in file.iter_batches(batch_size=rows_at_once, columns=["token"]):
                    column = PartColumn(path, "token", pa.chunked_array([batch.column(0)]), row)
                    value, missing = vectors(column, width, np.float16)
                    here = cell[row : row + len(value)]
                    yield (here[~missing], value[~missing]) if missing.any() else (here, value)
                    row += len(value)


def open_token_store(
    cache: Path,
    paths: Sequence[Path],
    manifest: Manifest,
    sample_ids: pa.Array,
    *,
    derived: Path | None = None,
    warnings: list[str],
    listing: Listing,
) -> TokenStore:
    """Opens the unpacked tokens, or checks the keys of the parts' rows so that they can be unpacked later.

    Adds to `warnings` when tokens are rounded to float16. Raises CacheError for unknown and duplicate keys.
    """
    space = manifest.space
    shape = (
        len(sample_ids),
        len(space.tiers),
        len(space.insertion_positions),
        len(manifest.budgets_ms),
        manifest.d_model,
    )
    cells_in_all = int(np.prod(shape[:4], dtype=object))
    if cells_in_all > MAX_TOKENS:
        raise CacheError(f"{cache / TOKENS}: {cells_in_all:,} tokens are more than can be opened")
    listed = {record.path: record.sha256 for record in manifest.files or ()}
    digests = {path.name: listed[f"{TOKENS}/{path.name}"] for path in paths if f"{TOKENS}/{path.name}" in listed}
    key = _key(paths, digests, manifest, sample_ids)
    mapped = find_store(cache, key, shape, derived, paths, digests)
    store = TokenStore(cache, paths, shape, key, digests, derived, mapped)
    if mapped is None:
        rows = _read_rows(cache, paths, manifest, sample_ids, listing)
        store._cells, store._nulls_possible = rows.cells, rows.nulls_possible
        if rows.rounded:
            warnings.append(f"{cache / TOKENS}: tokens are not float16; they are rounded to it, like live tokens")
    return store


def _is_half(file: pq.ParquetFile) -> bool:
    kind = file.schema_arrow.field("token").type
    return bool(pa.types.is_null(kind) or pa.types.is_float16(getattr(kind, "value_type", kind)))


def _key(paths: Sequence[Path], digests: dict[str, str], manifest: Manifest, sample_ids: pa.Array) -> str:
    """Hashes what the unpacked array depends on. Parts without a listed digest count by size and modification time."""

    def identity(path: Path) -> list[object]:
        stat = path.stat()
        return [path.name, digests.get(path.name) or [stat.st_size, stat.st_mtime_ns]]

    content = {
        "layout": LAYOUT,
        "parts": [identity(path) for path in paths],
        "samples": sample_ids.to_pylist(),
        "tiers": manifest.space.tiers,
        "insertion_positions": manifest.space.insertion_positions,
        "budgets_ms": np.asarray(manifest.budgets_ms, np.float32).tolist(),
        "d_model": manifest.d_model,
    }
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def _may_hold_nulls(metadata: pq.FileMetaData) -> bool:
    """Whether some tokens of a part may be null, as far as its footer says."""
    names = [metadata.schema.column(index).path.split(".")[0] for index in range(metadata.num_columns)]
    leaf = names.index("token")
    for group in range(metadata.num_row_groups):
        statistics = metadata.row_group(group).column(leaf).statistics
        if statistics is None or not statistics.has_null_count or statistics.null_count:
            return True
    return False


@dataclass
class _TokenRows:
    """Results of checking the parts before their tokens are read."""

    cells: list[NDArray[np.int64]] = field(default_factory=list)  # per part: its rows' places in the flat [S, T, P, M]
    nulls_possible: bool = False
    rounded: bool = False


def _read_rows(
    cache: Path, paths: Sequence[Path], manifest: Manifest, sample_ids: pa.Array, listing: Listing
) -> _TokenRows:
    """Reads the keys of all rows. Raises CacheError for another schema and for unknown and duplicate keys."""
    rows = _TokenRows()
    space = manifest.space
    budgets_ms = np.asarray(manifest.budgets_ms, np.float32)
    n_positions, n_budgets = len(space.insertion_positions), len(budgets_ms)
    size = len(sample_ids) * len(space.tiers) * n_positions * n_budgets
    schema = latency_tokens_schema(manifest.d_model)
    for path in paths:
        with open_part(cache, path, read_dictionary=["sample_id", "tier"]) as file:
            check_schema(path, file.schema_arrow, *schema)
            rows.rounded |= not _is_half(file)
            rows.nulls_possible |= _may_hold_nulls(file.metadata)
            if file.metadata.num_rows > size:
                raise CacheError(
                    f"{path} has {file.metadata.num_rows:,} rows, more than the {size:,} tokens of the grid"
                )
            with parquet_errors(path):
                table = read_columns(file, KEY_COLUMNS)
        listing.check_rows(path, table.num_rows)
        columns = {name: PartColumn(path, name, table.column(name)) for name in KEY_COLUMNS}
        cell = codes(columns["sample_id"], sample_ids, "sample {} is not in the table `samples`")
        tier = codes(
            columns["tier"], pa.array(space.tiers), f"tier {{}} is not one of the manifest's {list(space.tiers)}"
        )
        cell = cell * len(space.tiers) + tier
        cell = cell * n_positions + position_index(columns["insertion_position"], space)
        rows.cells.append(cell * n_budgets + _budget_index(columns["budget_ms"], budgets_ms))
    double = first_double(np.concatenate(rows.cells), size)
    if double is not None:
        (first_path, first_row), (path, row) = (locate(paths, [len(c) for c in rows.cells], row) for row in double)
        raise CacheError(
            f"{path}: row {row} (from 0), column 'sample_id': this sample, tier, insertion position and budget "
            f"also occur in row {first_row} of {first_path}"
        )
    return rows


def _budget_index(column: PartColumn, budgets_ms: NDArray[np.float32]) -> NDArray[np.int64]:
    column.no_nulls()
    value = real_numbers(column)
    if not len(budgets_ms):
        column.refuse_first(np.ones(len(value), bool), "budget {} ms, but the manifest's grid is empty")
    place = np.minimum(np.searchsorted(budgets_ms, value), len(budgets_ms) - 1)
    grid = ", ".join(f"{budget:g}" for budget in budgets_ms)
    column.refuse_first(budgets_ms[place] != value, f"budget {{}} ms is not in the manifest's grid: {grid}")
    return np.asarray(place, dtype=np.int64)
