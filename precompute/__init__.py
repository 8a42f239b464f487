"""Runs the frozen model under every knob setting and writes the cache.

Imports `data`, `devices` and, of the controllers, the budget encoder. The folders, each of which imports only those
before it: `models`, `execution`, `latency`, `run`, `scale`. Start with `scale/launch.py`, then
`run/sample.py`, which runs one sample.
"""
