"""One run over the samples of one process: inputs, what is fixed first, one sample, its rows, one shard. Imports
`models`, `execution` and `latency`. Start with `shard.py`.
"""
