"""The number of rows and columns of crops that an image is cut into.

Two rules: the released one, with an upper bound on the number of crops, and the tiers' rule, with a range.
"""

from __future__ import annotations

import math

import numpy as np

from .config import MolmoeConfig

Tiling = tuple[int, int]  # rows, columns


def choose_tiling(height: int, width: int, crops: int | tuple[int, int], config: MolmoeConfig) -> Tiling:
    """Returns the rows and columns of crops for an image of `height` x `width` pixels.

    Args:
        crops: an upper bound (the released rule), or a tier's inclusive range of rows x columns.

    Raises:
        ValueError: the image has no pixels, or no tiling has that many crops.
    """
    if min(height, width) < 1:
        raise ValueError(f"an image must have at least 1 x 1 pixels, not {height} x {width}")
    if isinstance(crops, int):
        return released_tiling(height, width, crops, config)
    return tier_tiling(height, width, *crops)


def tier_tiling(height: int, width: int, min_crops: int, max_crops: int) -> Tiling:
    """Returns the tiling whose log aspect ratio is nearest the image's, of those with rows x columns in the range.

    Ties are broken by more crops, then fewer rows. Independent of the image's size: a small image is scaled up.
    """
    candidates = [tiling for tiling in _tilings(max_crops) if math.prod(tiling) >= min_crops]
    if not candidates:
        raise ValueError(f"no tiling has {min_crops} to {max_crops} crops")
    wanted = math.log(height / width)

    def distance(tiling: Tiling) -> float:
        # Rounded, so that equally distant tilings (2 x 1 and 1 x 2 for a square) tie despite rounding errors.
        return round(abs(math.log(tiling[0] / tiling[1]) - wanted), 12)

    return min(candidates, key=lambda tiling: (distance(tiling), -math.prod(tiling), tiling[0]))


def released_tiling(height: int, width: int, max_crops: int, config: MolmoeConfig) -> Tiling:
    """The rule that the model was trained with: the least upscaling, or else the least downscaling.

    The scale is computed without the overlap margins, in float32 (other precisions give other tilings for some sizes).
    It is negative for a side shorter than the margins, which leads to one crop.
    """
    if max_crops < 1:
        raise ValueError(f"max_crops is {max_crops}, less than 1")
    patch = config.vision.patch_size
    margin = patch * sum(config.overlap_margins)
    window = np.array(config.window_patches, dtype=np.float32) * patch
    candidates = _tilings(max_crops)
    side = np.array([height - margin, width - margin], dtype=np.float32)
    with np.errstate(divide="ignore"):
        scale = (np.array(candidates, dtype=np.float32) * window / side).min(axis=1)
    if (scale < 1).all():
        return candidates[int(scale.argmax())]
    return candidates[int(np.where(scale < 1, np.inf, scale).argmin())]


def _tilings(max_crops: int) -> list[Tiling]:
    """Returns all tilings of at most `max_crops` crops, by number of crops, then by rows."""
    every = [(rows, columns) for rows in range(1, max_crops + 1) for columns in range(1, max_crops // rows + 1)]
    return sorted(every, key=lambda tiling: (math.prod(tiling), tiling[0]))
