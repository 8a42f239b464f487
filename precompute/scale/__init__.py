"""Several processes that share the samples of one run. Imports every other part of `precompute`. Start with
`launch.py`.
"""
