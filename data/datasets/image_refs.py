"""From an image reference of a cache (`image_ref`) to the image, wherever the dataset's files are now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DatasetError
from ..paths import BUNDLED_PREFIX, BUNDLED_ROOT
from ..samples import ImageSource
from .images import image_file, short_name
from .parquet_images import ParquetImage
from .remote_images import is_remote


@dataclass(frozen=True)
class ImageRoots:
    """The places that a dataset's image references are relative to."""

    dataset: str
    source: str | None  # path or URL of the samples; `file.parquet#row` is relative to its folder
    images: Path | None  # folder that paths are relative to
    named: Path | None = None  # image folder given for this run; it may hold the Parquet files too
    column: str = "image"  # column of images in Parquet files

    @classmethod
    def recorded(
        cls, dataset: str, record: Mapping[str, Any], *, source: Path | None = None, images: Path | None = None
    ) -> ImageRoots:
        """Returns the places that a cache's manifest records (`SampleSet.to_dict`), or those given for this run."""
        kept, kept_images = record.get("source"), record.get("images")
        if "images" not in record and kept is not None and _is_local(kept):
            kept_images = _folder(Path(kept))  # the cache does not record it: next to the data
        found = images or (None if kept_images is None else Path(kept_images))
        column = (record.get("columns") or {}).get("image", "image")
        return cls(dataset, kept if source is None else str(source), found, images, column)

    def parquet_root(self, file: str) -> Path:
        """Returns the folder of a Parquet file: the image folder given for this run, if the file is there.

        Raises DatasetError if the dataset's source is unknown or does not exist.
        """
        if self.named is not None and (self.named / file).is_file():
            return self.named
        advice = f"name the folder that holds {file} with --dataset {self.dataset}=FOLDER."
        if self.source is None or not _is_local(self.source):
            raise DatasetError(f"the files of dataset `{self.dataset}` are not recorded with a local path: {advice}")
        source = Path(self.source)
        if not source.exists():
            raise DatasetError(f"{source}, where dataset `{self.dataset}` was read from, does not exist: {advice}")
        return _folder(source)


def _is_local(source: str) -> bool:
    return not (source.startswith(BUNDLED_PREFIX) or is_remote(source))


def _folder(source: Path) -> Path:
    return source if source.is_dir() else source.parent


def image_from_ref(ref: str, roots: ImageRoots) -> ImageSource:
    """Returns the image of a cache's `image_ref`: a path, `file.parquet#row`, `bundled:...` or a URL.

    Raises DatasetError if the folder that it is relative to is unknown or missing, or if it leads out of that folder.
    """
    path, _, row = ref.rpartition("#")
    if not row.isdecimal() or not path.endswith(".parquet"):
        path, row = ref, ""
    if is_remote(path):
        return ParquetImage(path, int(row or 0), roots.column, ref, roots.images)
    where = f"image_ref {short_name(ref)!r}"
    if path.startswith(BUNDLED_PREFIX):
        file = image_file(BUNDLED_ROOT, path.removeprefix(BUNDLED_PREFIX), where)
        return ParquetImage(str(file.path), int(row), roots.column, ref, None) if row else file
    if row:
        file = image_file(roots.parquet_root(path), path, where)
        return ParquetImage(str(file.path), int(row), roots.column, ref, roots.images)
    if roots.images is None:
        raise DatasetError(f"image {short_name(ref)} is relative to an unknown folder: name it with --images.")
    return image_file(roots.images, path, where)
