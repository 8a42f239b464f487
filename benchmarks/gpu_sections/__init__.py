"""The measurements of `make gpu`, one module per subject. Start with `schedule.py`; `worker.py` runs the sections.

May import torch, transformers, numpy, Pillow, and those parts of knobctl that need no polars, pyarrow or pytest.
"""
