"""Frozen models: how they are loaded, and one folder for each family.

Imports `data` and `devices`; independent of knobs, budgets and caches. Start with
`backbone.py`, the protocol of a family, then `loading.py`.
"""
