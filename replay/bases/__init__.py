"""Frozen input bases of the controllers, fitted in closed form on the training split. Start with `fit.py`."""
