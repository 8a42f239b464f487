"""Where an image's bytes lie, and how they become pixels. Files of strangers: everything is bounded."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import DatasetError

MAX_IMAGE_BYTES = 64 << 20
MAX_IMAGE_PIXELS = 64_000_000  # 8000 x 8000: 192 MB of RGB

# Pillow reads more; these need no outside program and no rare plug-in.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
Image.init()  # loads the plug-ins now: later, threads that decode at once would race for it

# What Pillow's decoders raise on damaged data, beside its own UnidentifiedImageError (an OSError).
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    EOFError,
    LookupError,
    ArithmeticError,
    AttributeError,
    NotImplementedError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


def decode_image(data: bytes, ref: str) -> NDArray[np.uint8]:
    """Returns RGB pixels, uint8 [height, width, 3].

    Alpha is dropped and EXIF rotation ignored, as the released MolmoE processor does; 16-bit values are scaled to 8.
    Raises DatasetError, naming `ref`, for data that is no image, is damaged or cut short, or exceeds the bounds.
    """
    if not data:
        raise DatasetError(f"image {ref} is empty: replace it, or leave it out with --skip-bad.")
    if len(data) > MAX_IMAGE_BYTES:
        raise DatasetError(f"image {ref} has {len(data):,} bytes, and {MAX_IMAGE_BYTES:,} is the limit: shrink it.")
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            width, height = image.size
            if width * height > MAX_IMAGE_PIXELS:
                raise DatasetError(
                    f"image {ref} has {width} x {height} pixels, and {MAX_IMAGE_PIXELS:,} is the limit: shrink it."
                )
            pixels = _to_rgb(image)
    except _DECODE_ERRORS as error:
        reason = str(error) or type(error).__name__
        raise DatasetError(
            f"image {ref} cannot be decoded ({reason}): replace it, or leave it out with --skip-bad."
        ) from error
    return pixels


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith("I") or image.mode == "F":
        # Pillow's own conversion clips at 255, which turns a 16-bit image white.
        values = np.asarray(image).astype(np.float64)
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise ValueError(f"pixels of mode {image.mode} have no known range")
        grey = np.rint(values / 257).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"), dtype=np.uint8)


@dataclass(frozen=True)
class ImageFile:
    """An image file under a root folder."""

    path: Path
    ref: str  # relative to the images' root

    def read_bytes(self) -> bytes:
        """Returns the encoded image. Raises DatasetError when the file is missing, too large or not a plain file."""
        try:
            size = self.path.stat().st_size
            if not self.path.is_file():
                raise DatasetError(f"image {self.path} is not a file.")
            if size > MAX_IMAGE_BYTES:
                raise DatasetError(f"image {self.path} has {size:,} bytes, and {MAX_IMAGE_BYTES:,} is the limit.")
            return self.path.read_bytes()
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            raise DatasetError(
                f"image {self.path} cannot be read ({error}): check the images' folder (--images), "
                "or leave it out with --skip-bad."
            ) from error


def image_file(root: Path, name: str, where: str) -> ImageFile:
    """Returns the image `name` under `root`. A name that leads out of `root` is refused: annotation files may lie."""
    parts = PurePosixPath(name.replace("\\", "/"))
    inside = parts.relative_to(root) if parts.is_absolute() and parts.is_relative_to(root) else parts
    if not name or inside.is_absolute() or ".." in inside.parts or "\0" in name:
        raise DatasetError(f"{where}: image path {name!r} leads out of {root}: give the folder with --images.")
    return ImageFile(root / inside, str(inside))


@dataclass(frozen=True)
class InlineImage:
    """Encoded bytes already at hand, as tests and callers without files have them."""

    ref: str
    data: bytes = field(repr=False)

    def read_bytes(self) -> bytes:
        """Returns the encoded image."""
        return self.data
