"""Any mixture-of-experts vision-language model that transformers implements, run block by block.

No family is named here: layers, routers and their arguments are found in the model itself, and `conformance.py` checks
on the real weights that this is right. Start with `backbone.py`, then `block_runner.py` and `layer_calls.py`.
"""
