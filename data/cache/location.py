"""Where a cache is: the directory that its name stands for."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import CacheError
from ..paths import BUNDLED_PREFIX, BUNDLED_ROOT

_SUFFIX = "_cache"


def cache_directory(name: str | os.PathLike[str]) -> Path:
    """Returns the directory of a cache: that of `bundled:NAME` is in the package; any other name is a path.

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
