"""nano, the bundled model: its datasets, tokenizer, training and cache. Not needed to run nano.

Start with `scenes.py`, `questions.py` and `render.py` for the dataset small_print, and with `stages.py` and `train.py`
for the training. May import `data` and `precompute`.
"""
