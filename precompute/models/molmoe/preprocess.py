"""Converts an image to the model's input: overlapping crops, masks, image tokens, and the position of each feature.

Bit-compatible with the released processor, including its off-by-one in the masks, because the weights were trained with
it. Sizes come from the config.

Shapes: N = 1 + rows * columns crops (global first), P patches per crop, X = 3 * patch * patch, Q features per crop.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from .config import MolmoeConfig
from .prompt import SpecialTokens
from .tiling import Tiling

# CLIP's statistics of red, green and blue in [0, 1].
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)

DROPPED_FEATURE = -100  # image_input_idx of a feature in an overlap margin


class ImageInputs(NamedTuple):
    """One preprocessed image."""

    crops: Tensor  # [N, P, X] float32, normalised
    masks: Tensor  # [N, P] float32: share of a patch that is covered by the image; the last crop's row is -1
    token_ids: Tensor  # [image tokens] int64, between the begin token and the prompt
    image_input_idx: Tensor  # [N, Q] int64: position counted from the begin token; negative if dropped


def preprocess_image(
    rgb: NDArray[np.uint8], tiling: Tiling, config: MolmoeConfig, special: SpecialTokens
) -> ImageInputs:
    """Cuts an image into the global crop and rows x columns overlapping crops.

    Args:
        rgb: uint8 [height, width, 3], without EXIF rotation, which the released processor ignores.
        tiling: rows and columns, from `choose_tiling`.

    Raises:
        ValueError: `rgb` has another shape or dtype.
    """
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or 0 in rgb.shape:
        raise ValueError(f"an image must be uint8 [height, width, 3], not {rgb.dtype} {list(rgb.shape)}")
    crop_size = (config.vision.image_height, config.vision.image_width)
    window_rows, window_columns = config.window_patches
    step = (window_rows * config.vision.patch_size, window_columns * config.vision.patch_size)
    canvas_size = (step[0] * (tiling[0] - 1) + crop_size[0], step[1] * (tiling[1] - 1) + crop_size[1])
    pixels = torch.from_numpy(np.array(rgb)).permute(2, 0, 1).to(torch.float32) / 255
    global_crop, _ = resize_and_pad(pixels, crop_size)
    canvas, content = resize_and_pad(pixels, canvas_size)
    tiles = _windows(canvas, crop_size, step)
    tile_contents = _windows(content.unsqueeze(0), crop_size, step)
    patch = config.vision.patch_size
    tile_masks = _patches(tile_contents, patch).mean(dim=-1)
    token_ids, image_input_idx = image_tokens(tiling, config, special)
    return ImageInputs(
        crops=_patches(torch.cat([global_crop.unsqueeze(0), tiles]), patch),
        # Shifted by one row, as in training: the global crop has the first tile's mask, and the last tile has -1.
        masks=torch.cat([tile_masks, tile_masks.new_full((1, config.vision.num_patches), -1.0)]),
        token_ids=token_ids,
        image_input_idx=image_input_idx,
    )


def scaled_size(height: int, width: int, canvas_size: tuple[int, int]) -> tuple[int, int]:
    """Returns an image's height and width on the canvas, in pixels.

    Computed in float32 and truncated, as released. A side that would get 0 pixels, with which the released processor
    fails, gets 1.
    """
    sides = np.array([height, width], dtype=np.float32)
    scale = (np.array(canvas_size, dtype=np.float32) / sides).min()
    scaled = (sides * scale).astype(np.int64)
    return max(int(scaled[0]), 1), max(int(scaled[1]), 1)


def resize_and_pad(pixels: Tensor, canvas_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Resizes pixels [3, height, width] in [0, 1] to fit a canvas and centres them on it.

    Returns:
        The normalised canvas [3, *canvas_size], black (before normalisation) around the image, and the content mask
        [*canvas_size], 1 inside the image.
    """
    height, width = scaled_size(pixels.shape[1], pixels.shape[2], canvas_size)
    resized = functional.interpolate(
        pixels.unsqueeze(0), size=(height, width), mode="bilinear", antialias=True, align_corners=False
    )[0].clamp(0, 1)
    top, left = (canvas_size[0] - height) // 2, (canvas_size[1] - width) // 2
    rows, columns = slice(top, top + height), slice(left, left + width)
    canvas = pixels.new_zeros(3, *canvas_size)
    canvas[:, rows, columns] = resized
    content = pixels.new_zeros(canvas_size)
    content[rows, columns] = 1
    mean, std = (pixels.new_tensor(values).view(3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD))
    return (canvas - mean) / std, content


def image_tokens(tiling: Tiling, config: MolmoeConfig, special: SpecialTokens) -> tuple[Tensor, Tensor]:
    """Returns the image's token ids and `image_input_idx` [N, Q]: the global part, then the tiled one.

    Each feature of overlapping crops is kept once: a crop drops its margins, except at the image's edges.
    """
    pooling = (config.pooling_height, config.pooling_width)
    step = _feature_step(config)
    crop_grid, tiled_grid = _feature_grids(tiling, config)
    token_ids: list[int] = []
    indices: list[Tensor] = []
    for rows, columns in (crop_grid, tiled_grid):
        first_patch = 1 + len(token_ids) + 1  # after the begin token, the previous part, and this part's start token
        row = [special.image_patch] * columns + [special.image_column]
        token_ids += [special.image_start, *row * rows, special.image_end]
        grid = first_patch + torch.arange(rows).unsqueeze(1) * (columns + 1) + torch.arange(columns)
        indices.append(grid)
    global_grid, grid = indices
    tiles = []
    for tile_row in range(tiling[0]):
        for tile_column in range(tiling[1]):
            kept_rows = _kept(tile_row, tiling[0], crop_grid[0], config.overlap_margins, pooling[0])
            kept_columns = _kept(tile_column, tiling[1], crop_grid[1], config.overlap_margins, pooling[1])
            tile = torch.full(crop_grid, DROPPED_FEATURE)
            top, left = tile_row * step[0], tile_column * step[1]
            tile[kept_rows, kept_columns] = grid[top : top + crop_grid[0], left : left + crop_grid[1]][
                kept_rows, kept_columns
            ]
            tiles.append(tile)
    return torch.tensor(token_ids), torch.stack([global_grid, *tiles]).flatten(1)


def image_length(tiling: Tiling, config: MolmoeConfig) -> int:
    """Returns the number of token ids that `image_tokens` gives."""
    return sum(2 + rows * (columns + 1) for rows, columns in _feature_grids(tiling, config))


def feature_count(tiling: Tiling, config: MolmoeConfig) -> int:
    """Returns the number of image features that have a position."""
    return sum(rows * columns for rows, columns in _feature_grids(tiling, config))


def _feature_step(config: MolmoeConfig) -> tuple[int, int]:
    """Rows and columns of features from one crop to the next."""
    rows, columns = config.window_patches
    return rows // config.pooling_height, columns // config.pooling_width


def _feature_grids(tiling: Tiling, config: MolmoeConfig) -> tuple[tuple[int, int], tuple[int, int]]:
    """Rows and columns of features of the global crop, and of all other crops together."""
    (rows, columns), (row_step, column_step) = config.pooled_grid, _feature_step(config)
    return (rows, columns), (row_step * (tiling[0] - 1) + rows, column_step * (tiling[1] - 1) + columns)


def _kept(tile: int, num_tiles: int, features: int, margins: tuple[int, int], pooling: int) -> slice:
    """Returns which of a crop's rows (or columns) of features are kept, by its index among the tiles."""
    start = 0 if tile == 0 else margins[0] // pooling
    stop = features if tile == num_tiles - 1 else features - margins[1] // pooling
    return slice(start, stop)


def _windows(canvas: Tensor, size: tuple[int, int], step: tuple[int, int]) -> Tensor:
    """Cuts [channels, H, W] into overlapping windows [windows, channels, *size], row-major."""
    windows = canvas.unfold(1, size[0], step[0]).unfold(2, size[1], step[1])  # [channels, rows, columns, *size]
    return windows.permute(1, 2, 0, 3, 4).flatten(0, 1)


def _patches(crops: Tensor, patch: int) -> Tensor:
    """Cuts crops [crops, channels, H, W] into patches [crops, P, patch * patch * channels], channel fastest."""
    num_crops, channels, height, width = crops.shape
    grid = crops.reshape(num_crops, channels, height // patch, patch, width // patch, patch)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(num_crops, -1, patch * patch * channels)
