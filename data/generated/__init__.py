"""Generated populations and caches for tests and benchmarks. Start with `population.py`."""
