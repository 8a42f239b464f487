"""The texts that nano's tokenizer covers: all questions and answers of both datasets, and the prompt template."""

from __future__ import annotations

from collections.abc import Iterator

from tokenizers import Tokenizer

from .easy_pool import EasyImage
from .questions import COLUMN_NAMES, ROW_NAMES, SIDE_NAMES, every_template
from .scenes import COLORS, KINDS
from .tokenizer import build_tokenizer


def texts(pool: list[EasyImage]) -> Iterator[str]:
    """Yields texts that contain every word of both datasets."""
    yield " User: Assistant:"
    yield from (*COLORS, *KINDS, *ROW_NAMES, *COLUMN_NAMES, *SIDE_NAMES.values())
    yield from every_template()
    for image in pool:
        for question, answer in image.questions:
            yield f"{question} {answer}"


def nano_tokenizer(pool: list[EasyImage]) -> Tokenizer:
    """Returns nano's tokenizer; `pool` holds all training images of easy_vqa."""
    return build_tokenizer(texts(pool))
