"""One prompt under any block plan: token pass, plan tree, answer sweep, decoding. Imports `models`. Start with
`knob_model.py`, then `token_pass.py` and `answer_sweep.py`.
"""
