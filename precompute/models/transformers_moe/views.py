"""How an image is presented in a tier, which is a range of visual tokens.

The number of tokens comes from the processor itself. A `View` is the least setting that gives an image its number of
tokens, so tiers that give it the same number share all work.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from typing import NamedTuple

from PIL import Image

from ....data.errors import CheckpointError, DatasetError
from .processor import Processor
from .token_limits import Convention, Settings, find_convention, plain_value

Size = tuple[int, int]  # height and width of an image, pixels

# Sizes for which the processor's arithmetic is compared with what it does: wide, tall, small, large.
_COMPARED_SIZES = ((480, 640), (700, 250), (64, 64), (900, 900))


class View(NamedTuple):
    """How a processor presents one image."""

    settings: Settings
    vision_tokens: int  # positions that hold image features
    image_positions: int  # those, and what the processor puts around or between them


class Views:
    """The views of one processor.

    Args:
        processor: with an image processor, a tokenizer and an image token.

    Raises:
        CheckpointError: the processor cannot prepare an image.
    """

    def __init__(self, processor: Processor) -> None:
        self.processor = processor
        self._resolved = lru_cache(maxsize=4096)(self._resolve)
        self._run = lru_cache(maxsize=4096)(self._count_by_running)
        # Difference of the processor's arithmetic from the visual tokens, and other positions of an image.
        self._arithmetic: tuple[int, int] | None = None
        try:
            self._arithmetic = self._compare_arithmetic([()])
            self.convention: Convention = find_convention(processor, self._count, accepts=self._accepts)
            if self._arithmetic is not None:
                self._arithmetic = self._compare_arithmetic([(1, 16), (64, 128), (1, 1 << 16)])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{type(processor).__name__} cannot prepare an image: {error}") from error

    def view(self, height: int, width: int, size: tuple[int, int]) -> View:
        """Returns the view of an image of height x width pixels in a tier of size[0] to size[1] visual tokens.

        Where the processor has no setting within the range, it is the one nearest to it.

        Raises:
            DatasetError: the processor refuses images of this shape.
        """
        return self._resolved((height, width), size)

    def adjusted(self, settings: Settings) -> Processor:
        """Returns the processor with other settings of its image processor; the rest is shared."""
        if not settings:
            return self.processor
        adjusted, images = copy.copy(self.processor), copy.copy(self.processor.image_processor)
        values = {name: plain_value(value) for name, value in settings}
        for name, value in values.items():
            if isinstance(value, dict) and getattr(images, name, None) is not None:
                setattr(images, name, type(getattr(images, name))(**value))
            else:
                setattr(images, name, value)
        adjusted.image_processor = images
        # A processor's own `images_kwargs` take precedence over its image processor's attributes.
        adjusted.images_kwargs = {**getattr(self.processor, "images_kwargs", {}), **values}
        return adjusted

    def _resolve(self, image: Size, tier: tuple[int, ...]) -> View:
        try:
            settings = self.convention.settings(lambda tried: self._count(image, tried), *tier)
            return View(settings, *self._positions(image, settings))
        except ValueError as error:
            raise DatasetError(f"an image of {image[0]} x {image[1]} pixels cannot be prepared: {error}") from error

    def _count(self, image: Size, settings: Settings) -> int:
        return self._positions(image, settings)[0]

    def _positions(self, image: Size, settings: Settings) -> tuple[int, int]:
        """Returns an image's visual tokens and all positions it takes."""
        if self._arithmetic is None:
            return self._run(image, settings)
        off, others = self._arithmetic
        tokens = _by_arithmetic(self.adjusted(settings), image) - off
        return tokens, tokens + others

    def _count_by_running(self, image: Size, settings: Settings) -> tuple[int, int]:
        """Prepares a blank image of this size alone, and counts."""
        processor = self.adjusted(settings)
        blank = Image.new("RGB", (image[1], image[0]))
        made = processor(text=[processor.image_token], images=[blank], add_special_tokens=False, return_tensors="pt")
        ids = made["input_ids"][0]
        return int((ids == processor.image_token_id).sum()), len(ids)

    def _accepts(self, settings: Settings) -> bool:
        try:
            self._run((64, 64), settings)
        except ValueError:
            return False
        return True

    def _compare_arithmetic(self, tiers: Sequence[tuple[int, ...]]) -> tuple[int, int] | None:
        """Returns how the processor's own arithmetic differs from what it does, if always by the same number.

        Args:
            tiers: the empty one is the processor's own setting.
        """
        if not hasattr(self.processor, "_get_num_multimodal_tokens"):
            return None
        found = set()
        for image, tier in product(_COMPARED_SIZES, tiers):
            settings = self._resolve(image, tier).settings if tier else ()
            tokens, positions = self._run(image, settings)
            found.add((_by_arithmetic(self.adjusted(settings), image) - tokens, positions - tokens))
        return found.pop() if len(found) == 1 else None


def _by_arithmetic(processor: Processor, image: Size) -> int:
    counted: int = processor._get_num_multimodal_tokens(image_sizes=[image])["num_image_tokens"][0]
    return counted
