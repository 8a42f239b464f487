"""The cache on disk, format 1 of the design: written part by part, read as dense arrays, checked at every step.

Start with `reader.py` (`open_cache`, `Cache`) and `writer.py` (`CacheWriter`); `manifest.py` is `cache.json`. Exports
nothing itself: callers import the module they need, so that light ones load without pyarrow and polars.
"""
