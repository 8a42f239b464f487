"""Checks a cache's files against the list in `cache.json`: none missing, unlisted or changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import CacheError
from .manifest import MANIFEST_NAME, Manifest
from .parts import REMEDY, TOKENS, check_inside, sha256_file

CHANGED = "is not the file that cache.json lists: its sha256 differs, so it has been changed or damaged"


@dataclass(frozen=True)
class Listing:
    """The number of rows that `cache.json` lists for each part; unlisted parts may have any number."""

    rows: Mapping[Path, int] = field(default_factory=dict)

    def check_rows(self, path: Path, found: int) -> None:
        """Raises CacheError when a part has another number of rows than listed."""
        listed = self.rows.get(path, found)
        if listed != found:
            raise CacheError(f"{path} has {found} rows, but {MANIFEST_NAME} lists {listed}. {REMEDY}")


def check_files(cache: Path, manifest: Manifest, parts: Mapping[str, Sequence[Path]], warnings: list[str]) -> Listing:
    """Raises CacheError for the first file that is missing, unlisted or has another digest; adds to `warnings`.

    Token parts are gigabytes, so their digests are checked when they are read in full.
    """
    if manifest.files is None:
        warnings.append(f"{cache / MANIFEST_NAME} lists no files, so they are not checked for damage or changes")
        return Listing()
    listed = {record.path: record for record in manifest.files}
    for record in manifest.files:
        path = cache / record.path
        if not path.exists():
            raise CacheError(f"{path} is missing, though {cache / MANIFEST_NAME} lists it. {REMEDY}")
        check_inside(cache, path)
        is_token = record.path.startswith(f"{TOKENS}/")
        if not is_token and sha256_file(path) != record.sha256:
            raise CacheError(f"{path} {CHANGED}. {REMEDY}")
    rows: dict[Path, int] = {}
    for table, paths in parts.items():
        for path in paths:
            found = listed.get(f"{table}/{path.name}")
            if found is None:
                raise CacheError(f"{path} is not in the list of files in {cache / MANIFEST_NAME}. Remove it. {REMEDY}")
            if found.rows is not None:
                rows[path] = found.rows
    return Listing(rows)
