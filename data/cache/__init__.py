"""The cache on disk, format 1 of the design: written part by part, read as dense arrays, checked at every step."""

from .accuracy import accuracy_warnings
from .describe import describe_cache
from .executor import CacheExecutor
from .manifest import FileRecord, Manifest
from .merge import merge_caches
from .reader import Cache, open_cache
from .run_record import Shard, read_run
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
