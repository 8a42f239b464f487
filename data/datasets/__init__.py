"""Datasets: from names and files to samples, with images that are read when needed."""

from .images import decode_image
from .load import SampleSet, SkippedRow, load_samples
from .registry import DATASETS, DatasetSpec, parse_dataset_option
from .sources import image_from_ref, images_root_of

__all__ = [
    "DATASETS",
    "DatasetSpec",
    "SampleSet",
    "SkippedRow",
    "decode_image",
    "image_from_ref",
    "images_root_of",
    "load_samples",
    "parse_dataset_option",
]
