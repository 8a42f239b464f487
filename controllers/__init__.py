"""Stage1, Stage2, the frozen budget encoder, and their checkpoint.

Imports `data` and `devices`; independent of the model and of training. Start with `two_stage.py`, the deployed policy,
then `stage1.py` and `stage2.py`. `precompute` imports `budget_encoder.py` alone.
"""
