"""Training targets of the pooled image features, for training the vision tower alone.

The targets are words: the feature of a card should be the sum of the word embeddings of its colour and its digits, so
that image features and words share one space.

Shapes: N crops, Q features per crop; a tier of `side` rows has a global grid of 2 x 2 windows and a tiled one of 2 side
x 2 side windows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .easy_pool import COLORS as EASY_COLORS
from .easy_pool import SHAPES, EasyImage, foreground
from .scenes import COLORS, IMAGE_SIZE, Card, Scene

GROUPS = {
    "color": tuple("\u2581" + color for color in COLORS),
    "first": tuple("\u2581" + digit for digit in "0123456789"),
    "second": (*"0123456789", "<|endoftext|>"),
    "shape": tuple("\u2581" + shape for shape in SHAPES),
}
"""Groups of mutually exclusive words, as tokens; the second digit of a one-digit number is the end token."""

IGNORED = -100
BLANK = "blank"
LEGIBLE_PIXELS = 3.3
"""Digits of a smaller height, in pixels of the crop, have no target."""

Targets = dict[str, NDArray[np.int64]]


def scene_targets(scene: Scene, side: int) -> Targets:
    """Returns the index [N * Q] of the target word in each group, or IGNORED; `blank` is 1 for bare paper."""
    return _joined([_scene_grid(scene, 1), _scene_grid(scene, side)])


def easy_targets(image: EasyImage, rgb: NDArray[np.uint8], side: int) -> Targets:
    """Returns the same as `scene_targets` for an easy_vqa image, whose rotated pixels are `rgb`."""
    return _joined([_easy_grid(image, rgb, 1), _easy_grid(image, rgb, side)])


def _empty(windows: int) -> Targets:
    return {name: np.full((windows, windows), IGNORED) for name in (*GROUPS, BLANK)}


def _scene_grid(scene: Scene, side: int) -> Targets:
    windows = 2 * side
    # Only the window with a card's centre reports the card; others would report cards that are not there.
    window = IMAGE_SIZE / windows
    scale = side * 32 / IMAGE_SIZE
    targets = _empty(windows)
    targets[BLANK][:] = 1
    for card in sorted(scene.cards, key=lambda card: card.width * card.height):  # larger ones overwrite smaller ones
        center = int((card.top + card.height / 2) / window), int((card.left + card.width / 2) / window)
        _tell(targets, center, card, card.text_height * scale >= LEGIBLE_PIXELS)
    return targets


def _tell(targets: Targets, window: tuple[int, int], card: Card, is_legible: bool) -> None:
    digits = str(card.number)
    targets[BLANK][window] = IGNORED
    targets["color"][window] = COLORS.index(card.color)
    targets["first"][window] = int(digits[0]) if is_legible else IGNORED
    targets["second"][window] = (int(digits[1]) if len(digits) > 1 else 10) if is_legible else IGNORED


def _easy_grid(image: EasyImage, rgb: NDArray[np.uint8], side: int) -> Targets:
    windows = 2 * side
    targets = _empty(windows)
    ink = foreground(rgb)
    edges = np.linspace(0, len(rgb), windows + 1).round().astype(int)
    share = np.add.reduceat(np.add.reduceat(ink.astype(float), edges[:-1], axis=0), edges[:-1], axis=1)
    share /= np.outer(np.diff(edges), np.diff(edges))
    targets[BLANK][share == 0] = 1
    if image.color is not None:
        targets["color"][share > 0.25] = EASY_COLORS.index(image.color)
    if image.shape is not None and side == 1:  # one crop shows the whole shape
        targets["shape"][share > 0.1] = SHAPES.index(image.shape)
    return targets


def _joined(grids: list[Targets]) -> Targets:
    return {name: np.concatenate([_by_crop(grid[name]) for grid in grids]) for name in grids[0]}


def _by_crop(grid: NDArray[np.int64]) -> NDArray[np.int64]:
    """Flattens the windows [rows, columns] crop by crop, 2 x 2 windows per crop, both in row-major order."""
    side = len(grid) // 2
    return grid.reshape(side, 2, side, 2).transpose(0, 2, 1, 3).ravel()


assert COLORS[: len(EASY_COLORS)] == EASY_COLORS  # so the same indices are valid for both datasets
