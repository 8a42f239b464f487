"""Where a cache is: a directory, or a repository of the hub, from which it is fetched."""

from __future__ import annotations

from pathlib import Path

from ..cards import CARD_NAME
from ..hub.fetch import fetch_cache, is_hub_uri
from .manifest import MANIFEST_NAME, RUN_NAME
from .parts import ENCODER_NAME, TABLES

# All files of a cache but its manifest.
FILE_PATTERNS = (RUN_NAME, ENCODER_NAME, CARD_NAME, *(f"{table}/part-*.parquet" for table in TABLES))


def located(path: Path | str) -> tuple[Path, str]:
    """Returns the directory of a cache, and its path or its address on the hub with the commit.

    Only an address, `hf://datasets/owner/name[@revision]`, is fetched: a path that does not exist is never taken for a
    repository. Raises CacheError if it cannot be fetched.
    """
    if not is_hub_uri(path):
        return Path(path), str(path)
    return fetch_cache(str(path), MANIFEST_NAME, FILE_PATTERNS)
