"""What the other packages share: samples, knobs, plans, outcomes, and their formats on disk.

Uses numpy, pyarrow and polars; imports no other package of the project, and never torch. Start with `knobs.py` and
`samples.py`, then `cache/`. `files/` reads and writes safely, `datasets/` yields samples, `metrics/` turns answers into
accuracy, `importer/` and `importance/` read what other programs wrote, `generated/` makes caches of known structure,
`bundled/` holds the model and the datasets that come with the package.
"""
