"""The MolmoE family: a sparse text decoder, a CLIP-style vision tower, their checkpoint, images and prompts.

Knows nothing of budgets, caches or controllers.
"""
