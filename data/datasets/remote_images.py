"""Images in Parquet files on the hub: fetched in runs of rows, and cached on disk.

The smallest unit that can be fetched is a row group, tens of megabytes in the mirrors. Rows of one group are therefore
fetched together, and each image is fetched once. A file that changes at the same URL is not noticed: pin a revision
(`hf://datasets/NAME@REVISION/...`), or delete the folder.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from ..errors import DatasetError
from ..files.atomic import write_atomically
from ..paths import expand_home

CACHE_VARIABLE = "KNOBCTL_IMAGE_CACHE"
_ROWS_AT_ONCE = 128  # held in memory together: about 20 MB of photographs

_HUB_URL = re.compile(r"https://huggingface\.co/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


def is_remote(location: str) -> bool:
    """Returns whether `location` is a URL such as `hf://...`, which polars reads."""
    return "://" in location


def hub_location(location: str) -> str:
    """Returns the `hf://` form of a hub file's URL, so that a private repository's token is found again."""
    match = _HUB_URL.fullmatch(location)
    if match is None:
        return location
    repository, revision, path = match.groups()
    return f"hf://datasets/{repository}{'' if revision == 'main' else '@' + revision}/{path}"


def remote_cell(location: str, row: int, column: str) -> Any:
    """Returns the image in one row, from disk if it has been fetched before: a struct {bytes, path}, or bytes."""
    path = _cached_path(location, row)
    if path is not None and path.is_file():
        return path.read_bytes()
    for _, cell in _cells(location, column, [row]):
        _keep(location, row, cell)
        return cell
    raise OSError(f"the file has no row {row}")


def fetch(location: str, column: str, rows: Iterable[int]) -> None:
    """Fetches those images in `rows` of a file that are not on disk, neighbouring rows together."""
    missing = [row for row in sorted(rows) if (path := _cached_path(location, row)) is not None and not path.is_file()]
    for start in range(0, len(missing), _ROWS_AT_ONCE):
        for row, cell in _cells(location, column, missing[start : start + _ROWS_AT_ONCE]):
            _keep(location, row, cell)


def _cells(location: str, column: str, rows: Sequence[int]) -> Iterator[tuple[int, Any]]:
    first, last = rows[0], rows[-1]
    scan = pl.scan_parquet(location, glob=False).select(column).slice(first, last - first + 1)
    wanted = pl.Series(rows, dtype=pl.UInt32) - first
    frame = scan.with_row_index("knobctl: row").filter(pl.col("knobctl: row").is_in(wanted.implode())).collect()
    for index, cell in frame.select("knobctl: row", column).iter_rows():
        yield first + index, cell


def _keep(location: str, row: int, cell: Any) -> None:
    path, data = _cached_path(location, row), cell.get("bytes") if isinstance(cell, dict) else cell
    if path is None or not isinstance(data, bytes):
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data)
    except OSError as error:
        raise DatasetError(
            f"{path}: a fetched image cannot be stored ({error.strerror or error}): free some space, or name another "
            f"folder in the environment variable {CACHE_VARIABLE}."
        ) from error


def _cached_path(location: str, row: int) -> Path | None:
    """Returns where a fetched image is stored; None for a file on this machine."""
    if location.startswith("file://"):
        return None
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    root = Path(expand_home(os.environ.get(CACHE_VARIABLE, "")) or user / "knobctl" / "images")
    return root / hashlib.sha256(location.encode()).hexdigest()[:32] / str(row)
