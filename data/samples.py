"""Samples: an image, a question, reference answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol


class ImageSource(Protocol):
    """Reads an image when it is needed, so that a dataset of thousands of images is never in memory as a whole."""

    @property
    def ref(self) -> str:
        """The cache's `image_ref`: a path relative to the images' root, or `file.parquet#row` relative to the data."""

    def read_bytes(self) -> bytes:
        """Returns the encoded image (PNG, JPEG, ...). Raises DatasetError with path and row when it cannot be read."""


@dataclass(frozen=True)
class Sample:
    """One question about one image."""

    sample_id: str  # unique across datasets: `<dataset>/<question_id>`
    dataset: str
    split: str  # train, val or test, by seeded hash of image_id, so that no image is in two splits
    question: str
    answers: tuple[str, ...]
    image_id: str  # the dataset's own, else the sha256 of the image bytes
    image: ImageSource


class ModelInput(NamedTuple):
    """The part of a dataset's row that decides whether a model can run it, known before the row becomes a sample."""

    question: str
    style: str | None  # prefix of the question in the prompt; None: no prefix
    max_new_tokens: int
    height: int  # of the image, pixels
    width: int  # of the image, pixels
