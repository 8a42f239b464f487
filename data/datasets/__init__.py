"""Datasets: from names and files to samples, with images that are read when needed."""

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
