"""Policies to measure the controllers against: fixed settings, tables, neighbours, regressions, the oracle, ablations.

Fitted on the training split, tuned on `val`, reported on `test`. All answer the two calls of `data.protocols.Policy`.
"""
