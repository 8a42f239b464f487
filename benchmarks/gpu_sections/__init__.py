"""What `make gpu` measures, one module per subject. Start with `schedule.py`; `worker.py` runs the sections in order.

Imports torch, transformers, numpy, Pillow, and of knobctl what needs nothing else: no polars, pyarrow or pytest.
"""
