"""Training of the controllers by look-up in a cache.

Start with `train.py` (one run, from cache to checkpoint), then `trainer.py` (the loop). `data.py` and `inputs.py`
prepare what a step reads; `policy.py`, `losses.py` and `grpo.py` are the step; `stacked_mlp.py` evaluates all seeds as
one.
"""
