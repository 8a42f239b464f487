"""Where a cache is: a directory, a cache in the package, or a repository of the hub, from which it is fetched."""

from __future__ import annotations

import os
from pathlib import Path

from ..cards import CARD_NAME
from ..errors import CacheError
from ..hub.fetch import fetch_cache, is_hub_uri
from ..paths import BUNDLED_PREFIX, BUNDLED_ROOT
from .manifest import MANIFEST_NAME, RUN_NAME
from .parts import ENCODER_NAME, TABLES

# All files of a cache but its manifest.
FILE_PATTERNS = (RUN_NAME, ENCODER_NAME, CARD_NAME, *(f"{table}/part-*.parquet" for table in TABLES))
_SUFFIX = "_cache"


def located(name: str | os.PathLike[str]) -> tuple[Path, str]:
    """Returns the directory of a cache, and its name: its path, `bundled:NAME`, or its address on the hub with commit.

    Only an address, `hf://datasets/owner/name[@revision]`, is fetched: a path that does not exist is never taken for a
    repository. Raises CacheError if it cannot be fetched, or for a bundled cache that does not exist.
    """
    if is_hub_uri(os.fspath(name)):
        return fetch_cache(os.fspath(name), MANIFEST_NAME, FILE_PATTERNS)
    directory = cache_directory(name)
    return directory, cache_name(directory)


def cache_directory(name: str | os.PathLike[str]) -> Path:
    """Returns the directory of a cache on this machine: that of `bundled:NAME` is in the package.

    Raises CacheError for a bundled cache that does not exist.
    """
    text = os.fspath(name)
    if not text.startswith(BUNDLED_PREFIX):
        return Path(text)
    known = bundled_caches()
    if text not in known:
        raise CacheError(f"{text} is not a bundled cache: the package has {', '.join(known) or 'none'}.")
    return BUNDLED_ROOT / f"{text.removeprefix(BUNDLED_PREFIX)}{_SUFFIX}"


def bundled_caches() -> list[str]:
    """Returns the names of the caches in the package."""
    return [cache_name(path) for path in sorted(BUNDLED_ROOT.glob(f"*{_SUFFIX}"))]


def cache_name(directory: Path) -> str:
    """Returns what `cache_directory` takes: `bundled:NAME`, which is the same everywhere, or the path."""
    if is_bundled(directory):
        return f"{BUNDLED_PREFIX}{directory.name.removesuffix(_SUFFIX)}"
    return str(directory)


def is_bundled(directory: Path) -> bool:
    """Whether a cache is in the package, which is never written to."""
    return directory.resolve().parent == BUNDLED_ROOT
