"""Caches of known structure, generated for tests and benchmarks. `population.py` makes arrays, `cache.py` writes them.

Imports `data/cache` and `data/knobs.py` only. Start with `population.py`.
"""
