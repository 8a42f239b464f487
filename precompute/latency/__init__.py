"""Timed requests: clocks, one timed request, block times. Imports `models` and `execution`. Start with
`timed_request.py`.
"""
