"""Runs one prompt under any block plan: token pass, plan tree, answer sweep, decoding.

Imports `models`; independent of datasets' files and of the cache. Start with `knob_model.py`, then `token_pass.py` and
`answer_sweep.py`; `request_decoder.py` decodes a single request. Models are known by `models/backbone.py` alone.
"""
