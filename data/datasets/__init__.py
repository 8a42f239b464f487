"""Datasets: from names and files to samples, with images that are read when needed.

Exports load on first access: `images` is needed where pyarrow and polars may be missing.
"""

from typing import TYPE_CHECKING

from ..lazy import lazy_exports

if TYPE_CHECKING:
    from .images import decode_image
    from .load import SampleSet, SkippedRow, load_samples
    from .registry import DATASETS, DatasetSpec, parse_dataset_option
    from .sources import ImageRoots, image_from_ref

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
        "SampleSet": "load",
        "SkippedRow": "load",
        "decode_image": "images",
        "ImageRoots": "sources",
        "image_from_ref": "sources",
        "load_samples": "load",
        "parse_dataset_option": "registry",
    },
)
