"""What a sample is: an image, a question, reference answers. Knows nothing of where they come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol


class ImageSource(Protocol):
    """Where an image's bytes lie. Reading is late: a dataset of thousands of images is never held at once."""

    @property
    def ref(self) -> str:
        """What the cache stores as `image_ref`: a path under the images' root, or `file.parquet#row` under the data."""

    def read_bytes(self) -> bytes:
        """Returns the encoded image (PNG, JPEG, ...). Raises DatasetError, with path and row, when it cannot."""


@dataclass(frozen=True)
class Sample:
    """One question about one image."""

    sample_id: str  # unique across datasets: `<dataset>/<question_id>`
    dataset: str
    split: str  # train, val or test: by seeded hash of image_id, so that no image is in two
    question: str
    answers: tuple[str, ...]
    image_id: str  # the dataset's own, else the sha256 of the image bytes
    image: ImageSource


class ModelInput(NamedTuple):
    """What a row asks of a model, before it is a sample: enough to tell whether the model can run it."""

    question: str
    style: str | None  # prompt style prefix
    max_new_tokens: int
    height: int  # of the image, in pixels
    width: int
