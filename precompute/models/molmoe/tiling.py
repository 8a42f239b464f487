"""How many rows and columns of crops an image is cut into.

Two rules: the released one, an upper bound on the number of crops, and the one of the tiers, a range of it.
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
    """
    if min(height, width) < 1:
        raise ValueError(f"an image has at least 1 x 1 pixels, not {height} x {width}")
    if isinstance(crops, int):
        return released_tiling(height, width, crops, config)
    return tier_tiling(height, width, *crops)


def tier_tiling(height: int, width: int, min_crops: int, max_crops: int) -> Tiling:
    """Of the tilings with rows x columns in the range, the one whose log aspect ratio is nearest the image's.

    Ties: more crops, then fewer rows. The image's size plays no part: a small one is scaled up.
    """
    candidates = [tiling for tiling in _tilings(max_crops) if math.prod(tiling) >= min_crops]
    if not candidates:
        raise ValueError(f"no tiling has {min_crops} to {max_crops} crops")
    wanted = math.log(height / width)

    def distance(tiling: Tiling) -> float:
        # Rounded, so that tilings equally far (2 x 1 and 1 x 2 of a square) tie whatever the last bit says.
        return round(abs(math.log(tiling[0] / tiling[1]) - wanted), 12)

    return min(candidates, key=lambda tiling: (distance(tiling), -math.prod(tiling), tiling[0]))


def released_tiling(height: int, width: int, max_crops: int, config: MolmoeConfig) -> Tiling:
    """The rule that the model was trained with: the least scaling up, else the least scaling down.

    What an image needs is measured without the overlap margins, in float32 (other precisions choose otherwise for some
    sizes). A side shorter than the margins makes it negative, which leads to one crop.
    """
    if max_crops < 1:
        raise ValueError(f"max_crops is {max_crops}, not at least 1")
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
    """Every tiling of at most `max_crops`, by number of crops, then by rows."""
    every = [(rows, columns) for rows in range(1, max_crops + 1) for columns in range(1, max_crops // rows + 1)]
    return sorted(every, key=lambda tiling: (math.prod(tiling), tiling[0]))
