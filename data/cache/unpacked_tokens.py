"""Stores of unpacked tokens on disk: where they are, how they are written in one step, how they are found again.

A store is a directory named by a key, with `token.float16` [S, T, P, M, D], `present.bool` [S, T, P, M] and
`store.json`.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CacheError
from ..files.atomic import TEMPORARY_PREFIX, sync_directory, write_atomically
from ..files.bounded_json import dump_json, read_json
from ..files.lock import FileLock
from .file_list import CHANGED
from .location import is_bundled
from .parts import REMEDY, sha256_file

DERIVED_NAME = "derived"
DERIVED_VARIABLE = "KNOBCTL_DERIVED_DIR"
_STORE_KEY = re.compile(r"[0-9a-f]{32}")  # names of the directories that this module writes
TOKEN_NAME, PRESENT_NAME, STORE_NAME = "token.float16", "present.bool", "store.json"
_NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)

Shape = tuple[int, int, int, int, int]


@dataclass(frozen=True, eq=False)
class MappedTokens:
    """An open store, read-only. Axes as in `Cache`."""

    directory: Path
    token_STPMD: np.memmap
    present_STPM: NDArray[np.bool_]


def roots(cache: Path, derived: Path | None) -> list[Path]:
    """Returns the directories that may hold stores, in order of preference."""
    chosen = derived or (Path(os.environ[DERIVED_VARIABLE]) if os.environ.get(DERIVED_VARIABLE) else None)
    if chosen is not None:
        return [chosen]
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "knobctl" / "tokens"
    return [user] if is_bundled(cache) else [cache / DERIVED_NAME, user]


def find_store(
    cache: Path, key: str, shape: Shape, derived: Path | None, parts: Sequence[Path], digests: Mapping[str, str]
) -> MappedTokens | None:
    """Returns the store of `key` if it is complete. Raises CacheError when the parts have changed since it was made."""
    for root in roots(cache, derived):
        directory = root / key
        if not (directory / STORE_NAME).is_file():
            continue
        record = read_json(directory / STORE_NAME, CacheError)
        if not isinstance(record, dict) or record.get("key") != key or not _sizes_fit(directory, shape):
            continue
        if digests and record.get("parts") != _stats(parts):  # perhaps copied: hash the parts again
            for path in parts:
                if sha256_file(path) != digests.get(path.name):
                    raise CacheError(f"{path} {CHANGED}. {REMEDY}")
            if os.access(directory, os.W_OK):
                write_atomically(directory / STORE_NAME, dump_json({**record, "parts": _stats(parts)}))
        return _open(directory, shape)
    return None


def build_store(
    cache: Path,
    key: str,
    shape: Shape,
    derived: Path | None,
    parts: Sequence[Path],
    batches: Iterable[tuple[NDArray[np.int64], NDArray[np.float16]]],
) -> MappedTokens:
    """Unpacks `batches` of (cells, tokens) into a store, and opens it. A second process waits, then finds the store.

    Raises CacheError when no directory can be written or the disk is full.
    """
    root = _writable_root(cache, derived)
    directory = root / key
    size = int(np.prod(shape, dtype=object)) * 2
    try:
        with FileLock(root / f".lock-{key}", optional=True).exclusive():
            if not ((directory / STORE_NAME).is_file() and _sizes_fit(directory, shape)):
                # Outside the cache, stores of other caches may be beside this one.
                own = root == cache / DERIVED_NAME and not root.is_symlink()
                _remove_leftovers(root, key, everything=own)
                temporary = root / f"{TEMPORARY_PREFIX}{key}"
                try:
                    temporary.mkdir()
                    _fill(temporary, key, shape, parts, batches)
                    os.replace(temporary, directory)
                finally:
                    shutil.rmtree(temporary, ignore_errors=True)
                sync_directory(root)
    except OSError as cause:
        if cause.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CacheError(
                f"{root} has no room for the unpacked latency tokens ({size / 1e9:.2f} GB): free some space, or set "
                f"{DERIVED_VARIABLE} to a directory with room, and run the same command again"
            ) from cause
        raise CacheError(f"{root}: latency tokens cannot be unpacked into it: {cause.strerror or cause}") from cause
    return _open(directory, shape)


def verify_stores(cache: Path, derived: Path | None = None) -> list[tuple[Path, str]]:
    """Returns (file, problem) for stores of this cache whose bytes have changed since they were unpacked."""
    problems = []
    for root in [cache / DERIVED_NAME] if derived is None else [derived]:
        for path in sorted(root.glob(f"*/{STORE_NAME}")):
            try:
                record = read_json(path, CacheError)
            except CacheError as cause:
                problems.append((path, str(cause)))
                continue
            digests = record.get("sha256") if isinstance(record, dict) else None
            if not isinstance(digests, dict) or set(digests) != {TOKEN_NAME, PRESENT_NAME}:
                problems.append((path, "is not what was written; its directory may be removed"))
                continue
            for name, digest in digests.items():
                file = path.parent / name
                if not file.is_file() or sha256_file(file) != digest:
                    problems.append((file, "changed since it was unpacked; its directory may be removed"))
    return problems


def _writable_root(cache: Path, derived: Path | None) -> Path:
    refusals = []
    for root in roots(cache, derived):
        try:
            root.mkdir(parents=True, exist_ok=True)
            probe = root / f"{TEMPORARY_PREFIX}probe-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as cause:
            if cause.errno not in _NOT_WRITABLE:
                raise CacheError(f"{root} cannot hold unpacked latency tokens: {cause.strerror or cause}") from cause
            refusals.append(str(root))
            continue
        return root
    raise CacheError(
        f"latency tokens are unpacked once into a directory, but none of {refusals} is writable: "
        f"set {DERIVED_VARIABLE} to one that is"
    )


def _remove_leftovers(root: Path, key: str, *, everything: bool) -> None:
    """Removes a killed process's leftovers for this key; with `everything`, also stores of other (older) keys."""
    shutil.rmtree(root / f"{TEMPORARY_PREFIX}{key}", ignore_errors=True)
    shutil.rmtree(root / key, ignore_errors=True)
    if everything:
        for path in root.glob(f"*/{STORE_NAME}"):
            if _STORE_KEY.fullmatch(path.parent.name) and not path.parent.is_symlink():
                shutil.rmtree(path.parent, ignore_errors=True)


def _fill(
    directory: Path,
    key: str,
    shape: Shape,
    parts: Sequence[Path],
    batches: Iterable[tuple[NDArray[np.int64], NDArray[np.float16]]],
) -> None:
    size = int(np.prod(shape, dtype=object)) * 2
    path = directory / TOKEN_NAME
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):  # a full disk raises here; in the mapping it would be SIGBUS
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
    stats = _stats(parts)
    token = np.memmap(path, np.float16, "r+", shape=(int(np.prod(shape[:4])), shape[4]))
    present = np.zeros(len(token), bool)
    for cell, value in batches:
        if not len(cell):
            continue
        if cell[-1] - cell[0] == len(cell) - 1 and (np.diff(cell) == 1).all():
            token[cell[0] : cell[-1] + 1] = value
        else:
            token[cell] = value
        present[cell] = True
    for row in np.flatnonzero(~present):
        token[row] = np.nan
    token.flush()
    del token
    (directory / PRESENT_NAME).write_bytes(present.tobytes())
    digests = {name: sha256_file(directory / name) for name in (TOKEN_NAME, PRESENT_NAME)}
    record: dict[str, Any] = {"key": key, "shape": list(shape), "parts": stats, "sha256": digests}
    (directory / STORE_NAME).write_bytes(dump_json(record))
    for name in (TOKEN_NAME, PRESENT_NAME, STORE_NAME):
        with (directory / name).open("rb") as file:
            os.fsync(file.fileno())


def _stats(parts: Sequence[Path]) -> dict[str, list[int]]:
    return {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in parts}


def _sizes_fit(directory: Path, shape: Shape) -> bool:
    cells = int(np.prod(shape[:4], dtype=object))
    wanted = {TOKEN_NAME: cells * shape[4] * 2, PRESENT_NAME: cells}
    return all(
        (directory / name).is_file() and (directory / name).stat().st_size == size for name, size in wanted.items()
    )


def _open(directory: Path, shape: Shape) -> MappedTokens:
    token = np.memmap(directory / TOKEN_NAME, np.float16, "r", shape=shape)
    present = np.frombuffer((directory / PRESENT_NAME).read_bytes(), np.uint8).astype(bool).reshape(shape[:4])
    return MappedTokens(directory, token, present)
