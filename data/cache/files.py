"""Checks a cache's files against the list in `cache.json`: none missing, none more, none changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import CacheError
from .manifest import MANIFEST_NAME, Manifest
from .parts import TOKENS, check_inside, open_part, sha256_file

CHANGED = "is not the file that cache.json lists: its sha256 differs, so it was changed or damaged since"
REMEDY = "Restore it from a copy, or make the cache anew."


def check_files(
    cache: Path, manifest: Manifest, parts: Mapping[str, Sequence[Path]], warnings: list[str], *, tokens: bool = False
) -> None:
    """Raises CacheError for the first file that is missing, unlisted, of other rows or of another digest.

    Token parts are gigabytes: their digests are checked where they are read in full, or here when `tokens` is set.
    """
    if manifest.files is None:
        warnings.append(f"{cache / MANIFEST_NAME} lists no files: whether they are whole and unchanged is not verified")
        return
    listed = {record.path: record for record in manifest.files}
    for record in manifest.files:
        path = cache / record.path
        if not path.exists():
            raise CacheError(f"{path} is missing, though {cache / MANIFEST_NAME} lists it. {REMEDY}")
        check_inside(cache, path)
        is_token = record.path.startswith(f"{TOKENS}/")
        if (tokens or not is_token) and sha256_file(path) != record.sha256:
            raise CacheError(f"{path} {CHANGED}. {REMEDY}")
    for table, paths in parts.items():
        for path in paths:
            found = listed.get(f"{table}/{path.name}")
            if found is None:
                raise CacheError(
                    f"{path} is not among the files that {cache / MANIFEST_NAME} lists. Remove it. {REMEDY}"
                )
            rows = open_part(cache, path).metadata.num_rows
            if found.rows is not None and found.rows != rows:
                raise CacheError(f"{path} has {rows} rows, but {cache / MANIFEST_NAME} lists {found.rows}. {REMEDY}")
