"""Datasets: from a name and files to samples, whose images are read on demand.

Start with `load_samples` in `sample_set.py`. `registry.py` lists the known datasets; `sources.py` finds the rows of a
dataset, and `parquet_files.py` and `json_files.py` read them as the records of `records.py`. Two kinds of split occur:
`source_split.py` finds the rows of a split of the published dataset, and `cache_split.py` assigns samples to train,
val and test. May import only the root modules of `data`, `data/files` and `data/metrics`.
"""
