"""The texts that nano's tokenizer has to know: every question and answer of both datasets, and the prompt's frame."""

from __future__ import annotations

from collections.abc import Iterator

from tokenizers import Tokenizer

from .easy_pool import EasyImage
from .questions import COLUMN_NAMES, ROW_NAMES, SIDE_NAMES, every_template
from .scenes import COLORS, KINDS
from .tokenizer import build_tokenizer


def texts(pool: list[EasyImage]) -> Iterator[str]:
    """Yields texts that hold every word of both datasets."""
    yield " User: Assistant:"
    yield from (*COLORS, *KINDS, *ROW_NAMES, *COLUMN_NAMES, *SIDE_NAMES.values())
    yield from every_template()
    for image in pool:
        for question, answer in image.questions:
            yield f"{question} {answer}"


def nano_tokenizer(pool: list[EasyImage]) -> Tokenizer:
    """Returns nano's tokenizer; `pool` is all of easy_vqa's training images."""
    return build_tokenizer(texts(pool))
