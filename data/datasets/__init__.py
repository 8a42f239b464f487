"""Datasets: from names and files to samples, with images that are read when needed.

Start with `registry.py` (the datasets known by name) and `load.py` (`load_samples`). Exports nothing itself: callers
import the module they need, so that light ones such as `images.py` load without pyarrow and polars.
"""
