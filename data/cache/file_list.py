"""Checks a cache's files against the list in `cache.json`: none missing, none more, none changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import CacheError
from .manifest import MANIFEST_NAME, Manifest
from .parts import TOKENS, check_inside, sha256_file

CHANGED = "is not the file that cache.json lists: its sha256 differs, so it was changed or damaged since"
REMEDY = "Restore it from a copy, or make the cache anew."


@dataclass(frozen=True)
class Listing:
    """How many rows `cache.json` says that each part has; parts that it does not speak of may have any number."""

    rows: Mapping[Path, int] = field(default_factory=dict)

    def check_rows(self, path: Path, found: int) -> None:
        """Raises CacheError when a part has other rows than listed."""
        listed = self.rows.get(path, found)
        if listed != found:
            raise CacheError(f"{path} has {found} rows, but {MANIFEST_NAME} lists {listed}. {REMEDY}")


def check_files(cache: Path, manifest: Manifest, parts: Mapping[str, Sequence[Path]], warnings: list[str]) -> Listing:
    """Raises CacheError for the first file that is missing, unlisted or of another digest.

    Token parts are gigabytes: their digests are checked where they are read in full.
    """
    if manifest.files is None:
        warnings.append(f"{cache / MANIFEST_NAME} lists no files: whether they are whole and unchanged is not verified")
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
                raise CacheError(
                    f"{path} is not among the files that {cache / MANIFEST_NAME} lists. Remove it. {REMEDY}"
                )
            if found.rows is not None:
                rows[path] = found.rows
    return Listing(rows)
