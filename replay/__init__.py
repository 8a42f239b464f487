"""Training and evaluation by looking outcomes up in a cache; the model is never run, except in live validation.

May import `data` and `controllers`. Start with `tables.py` (a cache as arrays) and `reward.py`, then follow the folders
in the order of their imports: `bases`, `policies`, `evaluation`, `training`, `report`.
"""
