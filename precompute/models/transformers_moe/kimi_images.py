"""Kimi's image processing on PIL images: transformers has it for torchvision only.

The same arithmetic as `Kimi_K25ImageProcessor`; pixels differ as resampling by PIL and by torchvision does.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from transformers import BatchFeature
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD, PILImageResampling, SizeDict
from transformers.processing_utils import ImagesKwargs

Shape = tuple[int, int]  # height and width


class KimiImagesKwargs(ImagesKwargs, total=False):
    """Options of `KimiImageProcessorPil`."""

    max_patches: int
    patch_size: int
    merge_size: int


class KimiImageProcessorPil(PilBackend):
    """Scales an image down to at most `max_patches` patches, pads it at the right and bottom, and cuts it."""

    do_resize = True
    resample = PILImageResampling.BICUBIC
    size = {"max_height": 512, "max_width": 512}  # noqa: RUF012  patches along a side, as in the original
    max_patches = 16384
    do_rescale = True
    do_normalize = True
    image_mean = IMAGENET_STANDARD_MEAN
    image_std = IMAGENET_STANDARD_STD
    do_convert_rgb = True
    patch_size = 14
    merge_size = 2
    valid_kwargs = KimiImagesKwargs
    model_input_names = ["pixel_values", "image_grid_thw"]  # noqa: RUF012

    def _preprocess(  # type: ignore[override]  # as its siblings in transformers, with options of its own
        self,
        images: list[NDArray[np.uint8]],
        do_resize: bool,
        size: SizeDict,
        resample: PILImageResampling,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: list[float],
        image_std: list[float],
        patch_size: int,
        merge_size: int,
        max_patches: int,
        return_tensors: str | None,
        **_options: object,
    ) -> BatchFeature:
        patches, grids = [], []
        for image in images:
            if do_resize:
                scaled, padded = shapes(image.shape[-2:], patch_size, merge_size, max_patches, size.max_height or 512)
                image = self.resize(image, SizeDict(height=scaled[0], width=scaled[1]), resample=resample)
                below, beside = padded[0] - scaled[0], padded[1] - scaled[1]
                image = np.pad(image, ((0, 0), (0, below), (0, beside)))
            if do_rescale:
                image = self.rescale(image, rescale_factor)
            if do_normalize:
                image = self.normalize(image, image_mean, image_std)
            channels, rows, columns = len(image), image.shape[1] // patch_size, image.shape[2] // patch_size
            cut = image.reshape(channels, rows, patch_size, columns, patch_size).transpose(1, 3, 0, 2, 4)
            patches.append(cut.reshape(rows * columns, channels, patch_size, patch_size))
            grids.append([1, rows, columns])
        data = {"pixel_values": np.concatenate(patches), "image_grid_thw": np.array(grids, dtype=np.int64)}
        return BatchFeature(data=data, tensor_type=return_tensors)

    def get_number_of_image_patches(self, height: int, width: int, images_kwargs: dict | None = None) -> int:
        """Returns the patches of an image of height x width pixels, padding included."""
        options = {"patch_size": self.patch_size, "merge_size": self.merge_size, "max_patches": self.max_patches}
        options |= {name: value for name, value in (images_kwargs or {}).items() if name in options}
        size = (images_kwargs or {}).get("size") or self.size
        _, (padded_height, padded_width) = shapes((height, width), **options, max_patches_per_side=size["max_height"])
        return (padded_height // options["patch_size"]) * (padded_width // options["patch_size"])


def shapes(
    image: Shape, patch_size: int, merge_size: int, max_patches: int, max_patches_per_side: int
) -> tuple[Shape, Shape]:
    """Returns the shape to which an image is scaled, never up, and the shape to which that is padded."""
    longest = max_patches_per_side * patch_size
    patches = max(1, image[0] // patch_size) * max(1, image[1] // patch_size)
    scale = min(1.0, math.sqrt(max_patches / patches), longest / image[0], longest / image[1])
    scaled = tuple(min(max(1, int(side * scale)), longest) for side in image)
    unit = merge_size * patch_size
    return (scaled[0], scaled[1]), (-(-scaled[0] // unit) * unit, -(-scaled[1] // unit) * unit)
