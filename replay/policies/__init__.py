"""Policies that controllers are compared with, and policies that wrap another: ablations.

Baselines are fitted on the training split, tuned on `val` and reported on `test`. All implement the protocol `Policy`
of `data/protocols.py`.
May import the files of `replay`, `data` and `controllers`. Start with `scored.py` (a policy that scores every setting)
and `registry.py` (the baselines by name); `decide.py` asks a policy for its choices.
"""
