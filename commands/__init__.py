"""The commands: each parses its options, makes one call, and prints the result. May import every other package.

Start with `precompute.py`; `config_options.py` generates options from configs. Modules that load torch, transformers,
polars or pyarrow are imported inside the commands, so that `--help` stays fast.
"""
