"""Who runs the parts of a run: this process, worker processes, the ranks of a launcher, or actors of a Ray cluster.

One coordinator hands out parts and is the only writer of the cache; workers pull parts, run them and return their
files. May import every other part of `precompute`. Start with `launch.py`, then `coordinator.py` and `worker.py`.
"""
