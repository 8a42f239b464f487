"""Several processes that divide the samples of one run: worker processes on one machine, or ranks of a launcher.

May import every other part of `precompute`. Start with `launch.py`.
"""
