"""The content of a small_print image as data: coloured cards with numbers, placed on a 96 x 96 image.

Independent of rendering (render.py) and questions (questions.py).

The image has four quadrants. Each has an outer place of 32 x 32 pixels in the image's corner, for a card of any size,
and an inner place of 16 x 16 pixels towards the centre, for a small card. The crops of a tier (1 x 1, 2 x 2 or 3 x 3)
never split a place.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

IMAGE_SIZE = 96
OUTER_PLACE = 32
INNER_PLACE = 16

COLORS = ("red", "green", "blue", "yellow", "brown", "gray", "teal", "black", "orange", "purple")
"""Card colours; the first eight are those of easy_vqa."""

TEXT_HEIGHTS = {"large": (18, 20, 22), "middle": (11, 12, 14), "small": (7, 8)}
"""Digit heights in pixels of the image. The tiers show them at a third, two thirds or the whole of this size."""

GRID = 4
"""Cards start at multiples of this many pixels, so digits have fewer alignments with the vision tower's patches."""

KINDS = {
    "poster": (0.94, 0.04, 0.02),
    "sign": (0.90, 0.08, 0.02),
    "menu": (0.40, 0.45, 0.15),
    "label": (0.07, 0.23, 0.70),
    "contract": (0.03, 0.07, 0.90),
}
"""Kinds of image, with the probabilities that a card in an outer place is large, middle or small."""

INNER_CARD_CHANCE = {"poster": 0.01, "sign": 0.02, "menu": 0.04, "label": 0.2, "contract": 0.3}
"""Probability that each of the four inner places holds a (small) card."""

SIDES = {"left": (0, -1), "right": (0, 1), "above": (-1, 0), "below": (1, 0)}
"""Steps between quadrants, in (rows, columns)."""


@dataclass(frozen=True)
class Card:
    """One card. `left`, `top`, `width` and `height` are its rectangle in pixels of the image."""

    color: str
    number: int
    row: int
    column: int
    inner: bool
    size: str
    text_height: int
    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True)
class Scene:
    """The content of one image: a kind, and two to six cards with different colours and numbers."""

    kind: str
    cards: tuple[Card, ...]

    def card(self, color: str) -> Card:
        """Returns the card of this colour, which must exist."""
        return next(card for card in self.cards if card.color == color)

    def beside(self, card: Card, side: str) -> Card | None:
        """Returns the outer card in the adjacent quadrant on that side of an outer card, or None."""
        step_row, step_column = SIDES[side]
        place = (card.row + step_row, card.column + step_column)
        found = (other for other in self.cards if not other.inner and (other.row, other.column) == place)
        return None if card.inner else next(found, None)


def text_width(number: int, text_height: int) -> int:
    """Returns the width of a number in pixels: its digits and the gaps between them."""
    digits = len(str(number))
    return digits * digit_width(text_height) + (digits - 1) * digit_gap(text_height)


def digit_width(text_height: int) -> int:
    """Returns a digit's width in pixels."""
    return max(4, round(0.6 * text_height))


def digit_gap(text_height: int) -> int:
    """Returns the gap between two digits in pixels."""
    return max(1, round(0.08 * text_height))


QUADRANTS = ((0, 0), (0, 1), (1, 0), (1, 1))


def sample_scene(
    rng: random.Random, *, large_only: bool = False, crowded: bool = False, inner_chance: float | None = None
) -> Scene:
    """Returns a random scene.

    Args:
        large_only: only cards that are legible in the low tier (for the first steps of training).
        crowded: cards in all outer and most inner places, for training the vision tower.
        inner_chance: probability of a card in an inner place, instead of that of the kind of image. Needed to learn
            counting: with the dataset's frequencies the decoder counted only outer cards, which is mostly right.
    """
    kind = rng.choice(tuple(KINDS))
    outer = rng.sample(QUADRANTS, k=4 if crowded else rng.choices((2, 3, 4), weights=(1, 3, 4))[0])
    chance = INNER_CARD_CHANCE[kind] if inner_chance is None else inner_chance
    chance = 0.0 if large_only else 0.8 if crowded else chance
    inner = [quadrant for quadrant in QUADRANTS if rng.random() < chance]
    inner = rng.sample(inner, k=len(inner) if crowded else min(len(inner), 6 - len(outer), 2))
    colors = rng.sample(COLORS, k=len(outer) + len(inner))
    numbers: list[int] = []
    while len(numbers) < len(colors):
        number = rng.randrange(10) if rng.random() < 0.45 else rng.randrange(10, 100)
        if number not in numbers:
            numbers.append(number)
    cards = []
    for index, (row, column) in enumerate(outer + inner):
        is_inner = index >= len(outer)
        size = "small" if is_inner else rng.choices(tuple(TEXT_HEIGHTS), weights=KINDS[kind])[0]
        cards.append(
            _place_card(rng, colors[index], numbers[index], row, column, is_inner, "large" if large_only else size)
        )
    return Scene(kind, tuple(cards))


def _place_card(rng: random.Random, color: str, number: int, row: int, column: int, inner: bool, size: str) -> Card:
    side = INNER_PLACE if inner else OUTER_PLACE
    text_height = rng.choice(TEXT_HEIGHTS[size])
    padding = 2 if size == "small" else 3
    while text_width(number, text_height) + 2 * padding > side:
        padding, text_height = (padding - 1, text_height) if padding > 1 else (padding, text_height - 1)
    width = text_width(number, text_height) + 2 * padding
    height = text_height + 2 * padding
    left = rng.randrange(0, side - width + 1, GRID)
    top = rng.randrange(0, side - height + 1, GRID)
    if inner:
        left += IMAGE_SIZE // 2 - side if column == 0 else IMAGE_SIZE // 2
        top += IMAGE_SIZE // 2 - side if row == 0 else IMAGE_SIZE // 2
    else:
        left += 0 if column == 0 else IMAGE_SIZE - side
        top += 0 if row == 0 else IMAGE_SIZE - side
    return Card(color, number, row, column, inner, size, text_height, left, top, width, height)
