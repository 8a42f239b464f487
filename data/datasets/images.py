"""Reading and decoding images. The files are untrusted, so all sizes are bounded."""

from __future__ import annotations

import io
import os
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ..errors import DatasetError
from ..printable import printable
from .file_kind import describe_bytes, describe_name
from .pixels import UnknownRange, to_rgb

MAX_IMAGE_BYTES = 64 << 20
MAX_IMAGE_PIXELS = 64_000_000  # 8000 x 8000: 192 MB of RGB

# Pillow supports more formats; these need no external program or optional plug-in.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
Image.init()  # loads the plug-ins now, before several threads decode

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")

# What Pillow's decoders raise on damaged data, in addition to its own UnidentifiedImageError (an OSError).
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

    Alpha is dropped and EXIF rotation ignored, as in the released MolmoE processor; `pixels.py` describes how more than
    8 bits are scaled to 8. Raises DatasetError, naming `ref`, for data that is not an image, is damaged or truncated,
    has an unknown white level, or exceeds the limits.
    """
    with _opened(data, ref) as image:
        return to_rgb(image, data)


def image_size(data: bytes, ref: str) -> tuple[int, int]:
    """Returns (width, height) in pixels from the image's header, without decoding it.

    Raises DatasetError as `decode_image` does, except for damage that only decoding reveals.
    """
    with _opened(data, ref) as image:
        return image.size


@contextmanager
def _opened(data: bytes, ref: str) -> Iterator[Image.Image]:
    """Checks the sizes and the header; what decoding raises in the body becomes a DatasetError that names `ref`."""
    name = short_name(ref)
    if not data:
        raise DatasetError(f"image {name} is empty: replace it.")
    if len(data) > MAX_IMAGE_BYTES:
        raise DatasetError(
            f"image {name} has {len(data):,} bytes, and {MAX_IMAGE_BYTES:,} is the limit: make it smaller."
        )
    with decoding(ref, data), Image.open(io.BytesIO(data), formats=_FORMATS) as image:
        check_pixels(*image.size, ref)
        yield image


def check_pixels(width: int, height: int, ref: str) -> None:
    """Raises DatasetError if an image has too many pixels, or none."""
    if min(width, height) < 1:
        raise DatasetError(f"image {short_name(ref)} has {width} x {height} pixels: replace it.")
    if width * height > MAX_IMAGE_PIXELS:
        raise DatasetError(
            f"image {short_name(ref)} has {width} x {height} pixels, and {MAX_IMAGE_PIXELS:,} is the limit: "
            "scale it down."
        )


@contextmanager
def decoding(ref: str, data: bytes) -> Iterator[None]:
    """Turns what decoding raises in the body into a DatasetError that names `ref`."""
    name = short_name(ref)
    try:
        yield
    except UnknownRange as error:
        raise DatasetError(f"image {name} cannot be used: {error}.") from error
    except _DECODE_ERRORS as error:
        # Pillow's message contains a memory address; without it, two runs give the same reason.
        reason = "" if isinstance(error, UnidentifiedImageError) else f"{str(error) or type(error).__name__}; "
        reason = _ADDRESS.sub("", reason) + describe_bytes(data)
        raise DatasetError(
            f"image {name} cannot be decoded ({reason}): replace it with a {', '.join(_FORMATS)} image."
        ) from error


def short_name(name: str) -> str:
    """Returns an image's name shortened for messages; what is given as a name may be megabytes of base64."""
    return printable(name, 200)


@dataclass(frozen=True)
class ImageFile:
    """An image file under a root folder."""

    root: Path  # absolute
    ref: str  # relative to the root

    @property
    def path(self) -> Path:
        return self.root / self.ref

    def read_bytes(self) -> bytes:
        """Returns the encoded image. Raises DatasetError if the file is missing, too large or not a regular file."""
        name = short_name(str(self.path))
        try:
            size = self.path.stat().st_size
            if not self.path.is_file():
                raise DatasetError(f"image {name} is not a file.")
            if size > MAX_IMAGE_BYTES:
                raise DatasetError(f"image {name} has {size:,} bytes, and {MAX_IMAGE_BYTES:,} is the limit.")
            return self.path.read_bytes()
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            if not self.root.is_dir():
                raise DatasetError(
                    f"the image folder {self.root} does not exist (needed for {short_name(self.ref)}): name it with "
                    "--images."
                ) from error
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
            advice = describe_name(self.ref) or "check the image folder (--images)"
            raise DatasetError(f"image {name} cannot be read ({reason}): {advice}.") from error


def image_file(root: Path, name: str, where: str) -> ImageFile:
    """Returns the image file `name`, which is relative to `root` or an absolute path inside it.

    Raises DatasetError, beginning with `where`, for a name that leads out of `root`: annotation files are untrusted.
    """
    parts = PurePosixPath(name.replace("\\", "/"))
    base = root.absolute()
    inside = parts
    if parts.is_absolute():
        spellings = (Path(os.path.abspath(root)), base.resolve())  # without `..`; without symbolic links
        inside = next((parts.relative_to(one) for one in spellings if parts.is_relative_to(one)), parts)
    if not name or inside.is_absolute() or ".." in inside.parts or "\0" in name:
        advice = describe_name(name) or "give the folder with --images"
        raise DatasetError(f"{where}: image path {short_name(name)!r} leads out of {base}: {advice}.")
    return ImageFile(base, str(inside))


@dataclass(frozen=True)
class InlineImage:
    """An image whose encoded bytes are in memory."""

    ref: str
    data: bytes = field(repr=False)

    def read_bytes(self) -> bytes:
        """Returns the encoded image."""
        return self.data
