"""One process's part of a run: model and samples, what is fixed first, one sample, its rows, one shard; and live runs.

May import `models`, `execution` and `latency`. Start with `shard.py`, then `sample.py`.
"""
