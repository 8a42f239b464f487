"""Converts decoded images to 8-bit RGB. An image of more than 8 bits is scaled by its white level, or refused.

A file of 16 or 32 bits per sample often uses fewer of them; divided by 257, its values would be nearly black. The white
level is

1. the one that the file declares, if its values are consistent with it: TIFF MaxSampleValue or SMaxSampleValue, a
   BitsPerSample below 16, PNG sBIT, a PGM's maximum;
2. otherwise the maximum of the sample type (65535, 32767, ...), if some value uses the type's highest bit;
3. otherwise unknown, and the image is refused. So are negative values, and floating-point values without a declared
   maximum.

Of 16-bit colour Pillow keeps only the high bytes, which cannot be scaled: the image is refused unless rule 2 holds.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import DatasetError

_ADVICE = "convert it to 8 bits, or declare its range (TIFF MaxSampleValue, PNG sBIT)"
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT, _MAX_SAMPLE_VALUE, _S_MAX_SAMPLE_VALUE = 258, 262, 339, 281, 341
_SIGNED = 2


class UnknownRange(DatasetError):
    """The white level of the image is unknown."""


def to_rgb(image: Image.Image, data: bytes) -> NDArray[np.uint8]:
    """Returns RGB pixels, uint8 [height, width, 3], of an image opened from `data`.

    Raises UnknownRange if its white level is unknown or it has negative or non-finite pixels.
    """
    tags = getattr(image, "tag_v2", {})
    significant = _significant_bits(data)
    if image.mode.startswith("I") or image.mode == "F":
        # Pillow's own conversion clips at 255, which turns a 16-bit image white.
        grey = _scaled(_typed_values(image, tags), image, tags, significant)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if _sample_bits(data, tags) == 16:
        _check_colour(image, tags, significant)
    if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"), dtype=np.uint8)


def _scaled(values: NDArray[Any], image: Image.Image, tags: Any, significant: tuple[int, ...]) -> NDArray[np.uint8]:
    if not np.isfinite(values).all():
        raise UnknownRange(f"some of its floating-point pixels are not finite: {_ADVICE}")
    if values.min() < 0:
        raise UnknownRange(f"it has negative pixels, down to {values.min()}: {_ADVICE}")
    peak = values.max()
    white = _declared_white(values, image, tags, significant)
    if white is None and peak > 0:
        if values.dtype.kind == "f":
            raise UnknownRange(f"its floating-point pixels have no known range: {_ADVICE}")
        white = int(np.iinfo(values.dtype).max)
        if peak <= white // 2:
            raise UnknownRange(
                f"its brightest pixel is {peak:,} of a possible {white:,}, so its white level is unknown and it could "
                f"be too dark: {_ADVICE}"
            )
    share = values.astype(np.float64) / (white or 1)
    if tags.get(_PHOTOMETRIC) == 0:  # white is zero; Pillow inverts only images of at most 8 bits
        share = 1 - share
    return np.rint(share * 255).astype(np.uint8)


def _typed_values(image: Image.Image, tags: Any) -> NDArray[Any]:
    """Returns the pixels in the type stored in the file: Pillow widens signed 16 bits and reads 32 bits as signed."""
    values = np.asarray(image)
    values = values.astype(values.dtype.newbyteorder("="))
    if image.mode == "I" and tags:
        signed = _first(tags.get(_SAMPLE_FORMAT)) == _SIGNED
        if _first(tags.get(_BITS_PER_SAMPLE)) == 16:
            return values.astype(np.int16 if signed else np.uint16)
        return values if signed else values.view(np.uint32)
    return values


def _declared_white(
    values: NDArray[Any], image: Image.Image, tags: Any, significant: tuple[int, ...]
) -> float | int | None:
    peak = values.max()
    if image.format == "PPM" and image.mode == "I":
        return 65535  # Pillow has scaled the values by the header's maximum
    if significant:
        return _white_of_significant_bits(values, significant[0])
    for tag in (_MAX_SAMPLE_VALUE, _S_MAX_SAMPLE_VALUE):
        declared = _first(tags.get(tag))
        if declared is not None and declared > 0 and peak <= declared:
            return declared
    bits = _first(tags.get(_BITS_PER_SAMPLE))
    return (1 << bits) - 1 if bits is not None and 8 < bits < 16 and values.dtype.kind == "u" else None


def _white_of_significant_bits(values: NDArray[Any], bits: int) -> int | None:
    """Returns the white level of a PNG with this many significant bits; None if it is unknown.

    The PNG specification puts them in the high bits, with the low bits zero or a repetition; some programs use the low
    bits.
    """
    if bits == 16:
        return 65535
    high = (values >> (16 - bits)).astype(np.int64)
    repeated = sum((high << shift) if shift >= 0 else (high >> -shift) for shift in range(16 - bits, -bits, -bits))
    in_high_bits = not (values & ((1 << (16 - bits)) - 1)).any() or bool((values == repeated).all())
    if values.max() >> bits:
        return 65535 if in_high_bits else None
    return None if in_high_bits else (1 << bits) - 1


def _check_colour(image: Image.Image, tags: Any, significant: tuple[int, ...]) -> None:
    """Raises UnknownRange if the high bytes of 16-bit colour do not show that the values use all 16 bits."""
    declared = min(significant, default=0) == 16 or (_first(tags.get(_MAX_SAMPLE_VALUE)) or 0) > 32767
    bands = [band for band, name in zip(image.split(), image.getbands(), strict=True) if name not in ("A", "a", "X")]
    peak = max(int(np.asarray(band).max()) for band in bands)
    if not declared and peak < 128:
        raise UnknownRange(
            f"its brightest 16-bit colour value is below {(peak + 1) * 256:,} of 65,536, so its white level is unknown "
            "and it could be too dark: convert it to 8 bits"
        )


def _sample_bits(data: bytes, tags: Any) -> int | None:
    if data.startswith(b"\x89PNG"):
        return data[24]
    return _first(tags.get(_BITS_PER_SAMPLE))


def _significant_bits(data: bytes) -> tuple[int, ...]:
    """Returns the significant bits of each colour channel from a 16-bit PNG's sBIT; empty without one."""
    if not data.startswith(b"\x89PNG") or data[24] != 16:
        return ()
    start = 8
    while start + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, start)
        if kind == b"IDAT":
            break
        if kind == b"sBIT":
            channels = {0: 1, 4: 1, 2: 3, 6: 3}.get(data[25], 0)  # without alpha, which is last
            bits = tuple(data[start + 8 : start + 8 + channels])
            return bits if all(0 < bit <= 16 for bit in bits) else ()
        start += 12 + length
    return ()


def _first(value: Any) -> Any:
    """Returns a tag's value for the first channel; None if the file does not have the tag."""
    return value[0] if isinstance(value, tuple) else value
