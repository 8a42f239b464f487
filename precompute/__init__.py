"""Runs the frozen model under every knob setting. May import `data` and, of the controllers, the budget encoder only.

Packages, each importing only earlier ones: `models`, `execution`, `latency`, `run`, `scale`. Start with
`scale/launch.py`.
"""
