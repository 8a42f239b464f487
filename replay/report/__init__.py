"""Reports as text tables. Start with `tables.py`."""
