"""What a processor understands of a range of visual tokens, found from its attributes and never from its name.

* `PixelBounds`: a smallest and a largest area (`size` with both edges, and patches that are merged);
* `Cap`: a largest number of patches, or a longest side, and nothing smallest;
* `Steps`: a few settings: fixed numbers of tokens, numbers of tiles, image sizes with and without a split.

Any other processor has one step, its own setting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

from .processor import Processor

Settings = tuple[tuple[str, Any], ...]  # of the image processor; hashable: `plain_value` gives the value to set
Count = Callable[[Settings], int]  # visual tokens of one image under given settings
CountSize = Callable[[tuple[int, int], Settings], int]  # the same for an image of height x width pixels

MOST_TOKENS = 4096  # of one image in a default tier
_MOST_TILES = 64  # a larger `max_patches` counts patches, not tiles
_SOFT_TOKENS = tuple(70 << step for step in range(7))
_TYPICAL_SIZES = ((640, 480), (480, 640), (1024, 1024), (1080, 1920), (800, 2400), (64, 64))


class Convention(Protocol):
    """One way in which processors limit visual tokens."""

    def settings(self, count: Count, low: int, high: int) -> Settings:
        """Returns the settings under which an image has low to high visual tokens, or comes nearest."""
        ...

    def default_ranges(self, most: int) -> tuple[tuple[int, int], ...]:
        """Returns one to three ranges, least first, with at most about `most` visual tokens."""
        ...


@dataclass(frozen=True)
class PixelBounds:
    """The image keeps its size if its number of tokens is in the range, and else is scaled to the nearer end.

    Args:
        least, most: the processor's own range.
    """

    pixels_per_token: int
    least: int
    most: int

    def between(self, low: int, high: int) -> Settings:
        edges = {"shortest_edge": low * self.pixels_per_token, "longest_edge": high * self.pixels_per_token}
        return (("size", tuple(edges.items())),)

    def settings(self, count: Count, low: int, high: int) -> Settings:
        found = count(self.between(low, high))
        while found > high > 1:  # rounded up beyond the end of a narrow range
            high -= 1
            low = min(low, high)
            found = count(self.between(low, high))

        def scaled(level: int) -> int:
            return count(self.between(level, level))

        again = scaled(found)
        least = _least(scaled, found, found if again == found else low if again > found else high)
        return self.between(least, least)

    def default_ranges(self, most: int) -> tuple[tuple[int, int], ...]:
        return _thirds(self.least, min(self.most, most))


@dataclass(frozen=True)
class Cap:
    """The image is scaled down if it has more tokens than the range allows, and never up.

    Args:
        name: the setting, whose value grows by `step` at each level.
        levels: of the processor's own setting, where tokens are about `tokens_per_level * level ** power`.
    """

    name: str
    step: int
    levels: int
    is_side: bool = False

    def at(self, level: int) -> Settings:
        return ((self.name, (("longest_edge", level * self.step),) if self.is_side else level * self.step),)

    def settings(self, count: Count, low: int, high: int) -> Settings:
        del low  # a small image stays small
        below, above = 1, max(high, 2) + 1  # level 1 is always allowed; a token has at most one level
        while above - below > 1:
            middle = (below + above) // 2
            below, above = (middle, above) if count(self.at(middle)) <= high else (below, middle)
        return self.at(_least(lambda level: count(self.at(level)), count(self.at(below)), below))

    def default_ranges(self, most: int) -> tuple[tuple[int, int], ...]:
        return _thirds(1, min(self.levels**2 if self.is_side else self.levels, most))


@dataclass(frozen=True)
class Steps:
    """Any of a few settings: the most tokens within the range, or else the nearest number.

    Args:
        most_tokens: of each choice, for images of the sizes that need most.
        own: the same of the processor's own setting, which no default range exceeds.
    """

    choices: tuple[Settings, ...]
    most_tokens: tuple[int, ...]
    own: int

    def settings(self, count: Count, low: int, high: int) -> Settings:
        counts = [count(choice) for choice in self.choices]
        wanted = min(counts, key=lambda tokens: (max(low - tokens, tokens - high, 0), -tokens))
        return self.choices[counts.index(wanted)]

    def default_ranges(self, most: int) -> tuple[tuple[int, int], ...]:
        ends = sorted(set(self.most_tokens))
        ends = [end for end in ends if end <= min(most, self.own)] or ends[:1]
        chosen = sorted({ends[0], min(ends, key=lambda end: abs(end * end - ends[0] * ends[-1])), ends[-1]})
        lower = [1, *(end + 1 for end in chosen)]
        return tuple(zip(lower, chosen, strict=False))


def find_convention(processor: Processor, count: CountSize, *, accepts: Callable[[Settings], bool]) -> Convention:
    """Returns how a processor limits visual tokens.

    Args:
        accepts: whether the processor prepares an image under given settings.
    """
    images = processor.image_processor
    size = {name: value for name, value in dict(getattr(images, "size", None) or {}).items() if value}
    merge = getattr(images, "merge_size", None) or getattr(processor, "spatial_merge_size", None) or 1
    patch = plain_side(getattr(images, "patch_size", None))
    if {"shortest_edge", "longest_edge"} <= set(size) and patch:
        if bounds := _pixel_bounds(size, patch * merge, count):
            return bounds
    elif set(size) == {"longest_edge"} and patch:
        return Cap("size", patch * merge, max(size["longest_edge"] // (patch * merge), 1), is_side=True)
    if (most := _own(processor, "max_patches")) and most > _MOST_TILES:
        return Cap("max_patches", merge**2, most // merge**2)
    choices = tuple(choice for choice in _steps(processor) if accepts(choice)) or ((),)
    most_tokens = [max(count(size, choice) for size in _TYPICAL_SIZES) for choice in ((), *choices)]
    return Steps(choices, tuple(most_tokens[1:]), most_tokens[0])


def _pixel_bounds(size: dict[str, int], side: int, count: CountSize) -> PixelBounds | None:
    """Returns the bounds if the number of tokens follows them. Some processors count the frames of an image twice."""
    square = (20 * side, 20 * side)
    found = count(square, PixelBounds(side**2, 1, 1).between(1, 100))
    if not 4 <= found <= 121:
        return None
    pixels = side**2 * max(round(100 / found), 1)
    if count(square, PixelBounds(pixels, 1, 1).between(1, 100)) != 100:
        return None
    return PixelBounds(pixels, -(-size["shortest_edge"] // pixels), max(size["longest_edge"] // pixels, 1))


def _steps(processor: Processor) -> Iterator[Settings]:
    """Yields candidates, some of which the processor may refuse."""
    images = processor.image_processor
    if _own(processor, "max_soft_tokens"):
        yield from ((("max_soft_tokens", tokens),) for tokens in _SOFT_TOKENS)
    elif hasattr(images, "crop_to_patches"):
        least, most = _own(processor, "min_patches") or 1, _own(processor, "max_patches") or 1
        tile = getattr(images, "tile_size", None)  # an image that is not cut then has the size of a tile
        yield ("crop_to_patches", False), *((("size", (("height", tile), ("width", tile))),) if tile else ())
        for tiles in range(max(least, 2), min(most, _MOST_TILES) + 1):
            yield ("crop_to_patches", True), ("min_patches", least), ("max_patches", tiles)
    elif most := _own(processor, "max_patches"):
        yield from ((("max_patches", tiles),) for tiles in range(1, most + 1))
    elif hasattr(images, "split_image") and hasattr(images, "max_image_size"):
        sides = sorted(getattr(processor, "size_conversion", None) or [_own(processor, "max_image_size")])
        for split in (False, True):
            yield from ((("max_image_size", side), ("split_image", split)) for side in sides)


def _own(processor: Processor, name: str) -> Any:
    """Returns a setting as a plain call uses it: the processor's own takes precedence over the image processor's."""
    own = getattr(processor, "images_kwargs", {})
    return own[name] if name in own else getattr(processor.image_processor, name, None)


def plain_value(value: Any) -> Any:
    """Returns a setting's value as the image processor takes it."""
    return dict(value) if isinstance(value, tuple) else value


def plain_side(patch_size: Any) -> int | None:
    """Returns the side of a square patch, which some processors give as height and width."""
    if hasattr(patch_size, "keys") or hasattr(patch_size, "height"):
        return int(patch_size["height"])
    return patch_size if isinstance(patch_size, int) else None


def _least(count: Callable[[int], int], wanted: int, most: int) -> int:
    """Returns the least level with `wanted` tokens, of those up to `most`; a higher level never has fewer tokens."""
    low, high = 1, most
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if count(middle) < wanted else (low, middle)
    return low


def _thirds(least: int, most: int) -> tuple[tuple[int, int], ...]:
    """Splits a range of tokens into up to three of equal ratio; they share their ends."""
    low = max(least, min(64, most // 64), 1)
    parts = 3 if most >= 8 * low else 2 if most >= 4 * low else 1
    ends = [round(low * (most / low) ** (part / parts)) for part in range(parts + 1)]
    return tuple(pairwise(ends))
