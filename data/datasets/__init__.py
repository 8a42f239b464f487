"""Datasets: from a name and files to samples, whose images are read on demand.

Start with `load_samples` in `sample_set.py`. `registry.py` lists the known datasets; `sources.py` finds the rows of a
dataset, and `parquet_files.py` and `json_files.py` read them as the records of `records.py`. Two kinds of split occur:
`source_split.py` finds the rows of a split of the published dataset, and `cache_split.py` assigns samples to train,
val and test. May import only the root modules of `data`, `data/files` and `data/metrics`.

Exports are loaded on first access, because `images.py` is used where pyarrow and polars may not be installed.
"""

from typing import TYPE_CHECKING

from ..lazy import lazy_exports

if TYPE_CHECKING:
    from .image_refs import ImageRoots, image_from_ref
    from .images import decode_image
    from .registry import DATASETS, DatasetSpec, parse_dataset_option
    from .sample_set import SampleSet, SkippedRow, load_samples

__all__ = [
    "DATASETS",
    "DatasetSpec",
    "ImageRoots",
    "SampleSet",
    "SkippedRow",
    "decode_image",
    "image_from_ref",
    "load_samples",
    "parse_dataset_option",
]
__getattr__ = lazy_exports(
    __name__,
    {
        "DATASETS": "registry",
        "DatasetSpec": "registry",
        "SampleSet": "sample_set",
        "SkippedRow": "sample_set",
        "decode_image": "images",
        "ImageRoots": "image_refs",
        "image_from_ref": "image_refs",
        "load_samples": "sample_set",
        "parse_dataset_option": "registry",
    },
)
