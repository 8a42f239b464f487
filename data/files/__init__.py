"""Files on disk, independent of what they hold: atomic writes, locks, bounded JSON and its typed fields.

Imports nothing of the project but `data/errors.py` and `data/printable.py`. Start with `atomic.py`, which every command
that writes uses, and `json_fields.py`, through which every JSON file of unknown origin is read.
"""
