"""The pixels of an image that a caller of the library has: a path, encoded bytes, a Pillow image or an array."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import DatasetError
from .images import ImageFile, check_pixels, decode_image, decoding
from .pixels import to_rgb

ImageInput: TypeAlias = str | Path | bytes | Image.Image | NDArray[np.uint8]


def image_pixels(image: ImageInput) -> NDArray[np.uint8]:
    """Returns RGB pixels, uint8 [height, width, 3].

    Args:
        image: a path; encoded bytes (JPEG, PNG, ...); a Pillow image; or uint8 [height, width, 3].

    Raises:
        DatasetError: it cannot be read or decoded, is too large, or is none of these.
    """
    if isinstance(image, str | Path):
        path = Path(image).expanduser().absolute()
        return decode_image(ImageFile(path.parent, path.name).read_bytes(), str(image))
    if isinstance(image, bytes):
        return decode_image(image, "in memory")
    if isinstance(image, Image.Image):
        check_pixels(*image.size, "in memory")
        with decoding("in memory", b""):
            return to_rgb(image, b"")
    if not isinstance(image, np.ndarray):
        raise DatasetError(
            f"an image is a path, encoded bytes, a Pillow image or an array, not {type(image).__name__}."
        )
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise DatasetError(f"an image array must be uint8 [height, width, 3], not {image.dtype} {list(image.shape)}.")
    check_pixels(image.shape[1], image.shape[0], "in memory")
    return np.ascontiguousarray(image)
