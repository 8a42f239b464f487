"""Frozen models: loading, devices, and each family's own code. Independent of knobs. Start with `loading.py`."""
