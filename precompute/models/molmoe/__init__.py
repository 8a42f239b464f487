"""The MolmoE family: a sparse text decoder, a CLIP-style vision tower, their checkpoint, images and prompts.

Start with `model.py`, then `text.py` and `experts.py`; `preprocess.py` and `prompt.py` make the model's input.
"""
