"""The cache on disk, format 1 of the design: written part by part, read as dense arrays, checked at every step.

Exports load on first access: `disk` and `executor` are needed where pyarrow and polars may be missing.
"""

from typing import TYPE_CHECKING

from ..lazy import lazy_exports

if TYPE_CHECKING:
    from .accuracy import accuracy_warnings
    from .describe import describe_cache
    from .executor import CacheExecutor
    from .manifest import FileRecord, Manifest
    from .merge import merge_caches
    from .reader import Cache, open_cache
    from .run_record import read_run
    from .shard import Shard
    from .token_store import TokenStore
    from .verify import Problem, verify_cache
    from .writer import CacheWriter

__all__ = [
    "Cache",
    "CacheExecutor",
    "CacheWriter",
    "FileRecord",
    "Manifest",
    "Problem",
    "Shard",
    "TokenStore",
    "accuracy_warnings",
    "describe_cache",
    "merge_caches",
    "open_cache",
    "read_run",
    "verify_cache",
]
__getattr__ = lazy_exports(
    __name__,
    {
        "Cache": "reader",
        "CacheExecutor": "executor",
        "CacheWriter": "writer",
        "FileRecord": "manifest",
        "Manifest": "manifest",
        "Problem": "verify",
        "Shard": "shard",
        "TokenStore": "token_store",
        "accuracy_warnings": "accuracy",
        "describe_cache": "describe",
        "merge_caches": "merge",
        "open_cache": "reader",
        "read_run": "run_record",
        "verify_cache": "verify",
    },
)
