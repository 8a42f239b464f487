"""Checks every byte of a cache against its digests and every row against the format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import CacheError
from .file_list import CHANGED
from .location import cache_directory
from .manifest import MANIFEST_NAME, Manifest, manifest_changed
from .parts import SAMPLES, TABLES, companion_digests, part_paths, sha256_file
from .reader import open_cache
from .unpacked_tokens import verify_stores


@dataclass(frozen=True)
class Problem:
    """A file, and what is wrong with it."""

    path: Path
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


def verify_cache(path: Path, *, derived: Path | None = None) -> list[Problem]:
    """Returns everything that is wrong with the cache at `path`; an empty list when it is intact.

    Compares the digests of all files first; if they agree, or there are none, reads every row and every token.

    Raises:
        CacheError: There is no cache to check.
    """
    path = cache_directory(path)
    manifest_path = path / MANIFEST_NAME
    if not manifest_path.is_file():
        Manifest.read(path)  # raises CacheError, which names what is missing
    try:
        manifest = Manifest.read(path)
        problems = [Problem(manifest_path, "differs from what was written")] if manifest_changed(manifest_path) else []
    except CacheError as cause:
        return [Problem(manifest_path, str(cause).removeprefix(f"{manifest_path}: "))]
    if manifest.files is None:
        problems.append(Problem(manifest_path, "lists no files, so changed bytes cannot be detected"))
    problems += _digest_problems(path, manifest)
    problems += [Problem(file, what) for file, what in verify_stores(path, derived)]
    if problems and manifest.files is not None:
        return problems
    try:
        # There is no store at this path, so the parts themselves are read.
        cache = open_cache(path, derived=path / "no-store")
        if cache.tokens is not None:
            for _ in cache.tokens.batches():
                pass
        for name in ("answer", "latency_std_ms", "latency_runs_ms", "output_tokens", "vision_tokens"):
            cache.outcome_column(name)
    except CacheError as cause:
        problems.append(Problem(path, str(cause)))
    return problems


def verify_parts(path: Path) -> list[Problem]:
    """Returns what is wrong with the committed parts of a cache that may be incomplete.

    A part is committed when its `samples` file exists; that file records the digests of the part's other files.
    """
    problems = []
    for part in part_paths(path, SAMPLES):
        try:
            digests = companion_digests(path, part)
        except CacheError as cause:
            problems.append(Problem(part, str(cause)))
            continue
        for relative, digest in digests.items():
            file = path / relative
            if not file.is_file() or sha256_file(file) != digest:
                problems.append(Problem(file, "differs from what was committed with its samples"))
    return problems


def _digest_problems(path: Path, manifest: Manifest) -> list[Problem]:
    problems = []
    listed = {record.path for record in manifest.files or ()}
    for record in manifest.files or ():
        file = path / record.path
        if not file.is_file() or not file.resolve().is_relative_to(path.resolve()):
            problems.append(Problem(file, "is missing, or is not a file inside the cache"))
        elif sha256_file(file) != record.sha256:
            problems.append(Problem(file, CHANGED))
    if manifest.files is not None:
        for table in TABLES:
            for file in part_paths(path, table):
                if f"{table}/{file.name}" not in listed:
                    problems.append(Problem(file, f"is not in the list of files in {MANIFEST_NAME}"))
    return problems
