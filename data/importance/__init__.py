"""Importance scores as files, in every known layout. Start with `scores.py`."""
