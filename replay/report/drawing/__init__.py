"""Draws the records of `../figures` with matplotlib. Start with `style.py`; one function per figure.

matplotlib is an optional dependency (extra `report`), imported where something is drawn.
"""
