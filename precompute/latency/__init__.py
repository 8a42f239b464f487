"""Measures latency at batch 1: clocks, one timed request, and block times, from which a plan's latency is summed.

Imports `models` and `execution`. Start with `timed_request.py`, then `block_times.py`.
"""
