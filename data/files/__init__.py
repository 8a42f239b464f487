"""Files on disk, for every package: atomic writes, locks, bounded JSON. Start with `atomic.py`."""
