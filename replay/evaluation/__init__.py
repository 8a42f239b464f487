"""Evaluation of policies on held-out samples, with intervals: in replay, and live with any executor.

May import `replay.policies` and what they import. Start with `validate.py` or `compare.py` (the commands), then
`build_report.py`, `request_stats.py` (one request), `figures.py` (means and intervals) and `report.py` (the result).
"""
