"""Crops of a batch of square images: the batched form of `preprocess_image`.

Only for square images, tiers with as many rows of crops as columns, and a geometry without overlap.

Shapes: B images, N = 1 + side * side crops (the global one first), P patches per crop, X = 3 * patch * patch.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ...precompute.models.molmoe.config import MolmoeConfig
from ...precompute.models.molmoe.preprocess import IMAGE_MEAN, IMAGE_STD

TIER_SIDES = {"low": 1, "medium": 2, "high": 3}
"""Number of rows and of columns of crops of a square image in each tier."""


def crop_images(rgb: NDArray[np.uint8], side: int, config: MolmoeConfig) -> Tensor:
    """Cuts images [B, height, width, 3] into crops [B, N, P, X]."""
    pixels = torch.from_numpy(np.ascontiguousarray(rgb)).permute(0, 3, 1, 2).float() / 255
    crop = config.vision.image_height
    global_crop = _patches(_scaled(pixels, crop), 1, config)
    return torch.cat([global_crop, _patches(_scaled(pixels, side * crop), side, config)], dim=1)


def crop_masks(batch: int, side: int, config: MolmoeConfig) -> Tensor:
    """Returns the content masks [B, N, P]: 1 everywhere, except -1 for the last crop as in `preprocess_image`."""
    masks = torch.ones(batch, 1 + side * side, config.vision.num_patches)
    masks[:, -1] = -1
    return masks


def _scaled(pixels: Tensor, size: int) -> Tensor:
    scaled = functional.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    mean, std = (pixels.new_tensor(values).view(3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD))
    return (scaled.clamp(0, 1) - mean) / std


def _patches(canvas: Tensor, side: int, config: MolmoeConfig) -> Tensor:
    patch, grid = config.vision.patch_size, config.vision.patch_grid[0]
    cut = canvas.reshape(len(canvas), 3, side, grid, patch, side, grid, patch)  # b c rows r p columns q w
    return cut.permute(0, 2, 5, 3, 6, 4, 7, 1).reshape(len(canvas), side * side, grid * grid, 3 * patch * patch)
