"""Small copies of images as data URIs, so that a page needs no other file."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from ....data.cache.reader import Cache
from ....data.datasets.image_refs import ImageRoots, image_from_ref
from ....data.datasets.images import decode_image
from ....data.errors import DatasetError

LONGEST_SIDE = 320  # pixels
JPEG_QUALITY = 80


class Thumbnail(NamedTuple):
    """An image of at most 320 x 320 pixels."""

    uri: str
    width: int
    height: int


class Thumbnails:
    """Reads the images of a cache from where the cache or the caller says that they are."""

    def __init__(self, cache: Cache, images: Path | None, sources: Mapping[str, Path]) -> None:
        table = cache.samples
        self._refs = table["image_ref"].to_list() if "image_ref" in table.columns else [None] * len(table)
        self._datasets: list[str] = table["dataset"].to_list()
        records: dict[str, Any] = {name: {} for name in self._datasets} | (cache.manifest.datasets or {})
        self._roots = {
            name: ImageRoots.recorded(name, record, source=sources.get(name), images=images)
            for name, record in records.items()
        }

    def of(self, sample: int) -> Thumbnail | None:
        """Returns the image of a sample; None if it is not available."""
        ref = self._refs[sample]
        if ref is None:
            return None
        try:
            return thumbnail(image_from_ref(ref, self._roots[self._datasets[sample]]).read_bytes(), ref)
        except DatasetError:  # the page says that it is not available
            return None


def thumbnail(data: bytes, ref: str) -> Thumbnail:
    """Returns a small copy, without the file's metadata, as PNG or JPEG, whichever is smaller.

    Raises DatasetError for data that is not an image.
    """
    image = Image.fromarray(decode_image(data, ref))
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    png, jpeg = io.BytesIO(), io.BytesIO()
    image.save(png, "PNG", optimize=True)
    image.save(jpeg, "JPEG", quality=JPEG_QUALITY, optimize=True)
    kind, made = min((("png", png.getvalue()), ("jpeg", jpeg.getvalue())), key=lambda one: len(one[1]))
    return Thumbnail(f"data:image/{kind};base64,{base64.b64encode(made).decode()}", *image.size)
