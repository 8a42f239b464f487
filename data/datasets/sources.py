"""Where a dataset's rows come from: official files, Parquet or JSON Lines, on disk, in the package or on the hub."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DatasetError
from ..paths import BUNDLED_ROOT
from ..samples import ImageSource
from .images import image_file, short_name
from .json_files import JsonLinesRows, OfficialRows, has_official_files, official_name
from .parquet import ParquetRows
from .parquet_images import ParquetImage
from .records import Rows, utf8
from .registry import DatasetSpec
from .remote_images import is_remote
from .source_split import ALL_ROWS, SourceSplit, relative_names

BUNDLED_PREFIX = "bundled:"  # of image references that need no root: the files come with the package
_SCHEMES = ("hf", "https", "http", "file")
_HUB_REPOSITORY = re.compile(r"hf://datasets/[^/]+/[^/]+/?")


@dataclass(frozen=True)
class OpenedRows:
    """A dataset's rows and where they were found."""

    rows: Rows
    label: str
    images_root: Path | None  # where image paths start, absolute; None: the images need no folder
    answer_field: str | None


def open_rows(
    spec: DatasetSpec,
    *,
    root: Path | None,
    source: str | Path | None,
    images: Path | None,
    split: SourceSplit | None,
    answer_field: str,
    columns: Mapping[str, str],
) -> OpenedRows:
    """Returns the rows of `spec`: from `source`, else `root/<name>`, else the bundled files, else the hub mirror."""
    prefix = ""
    if source is None and root is not None and (not spec.bundled or (root / spec.name).exists()):
        source = root / spec.name
    if source is None and spec.bundled:
        source, prefix, label = (
            BUNDLED_ROOT / spec.name,
            f"{BUNDLED_PREFIX}{spec.name}/",
            f"{BUNDLED_PREFIX}{spec.name}",
        )
        if not source.is_dir():
            raise DatasetError(f"{source} is missing from the installation: install knobctl again.")
    else:
        source = source if source is not None else spec.hub
        label = str(source) if is_remote(str(source)) else str(Path(str(source)).absolute())
    assert source is not None
    utf8(label, "the path", repr(label))
    if images is not None and not images.is_dir():
        raise DatasetError(f"{images} is not a folder: --images names the folder where image paths start.")
    if is_remote(str(source)):
        location = _remote_location(str(source), spec, split)
        parquet = ParquetRows(location, split=split, answer_field=answer_field, columns=columns, root=images)
        return OpenedRows(parquet, location, images and images.absolute(), parquet.answer_field)
    rows = _local_rows(Path(source), spec, images, split, answer_field, columns, prefix)
    assert rows.root is not None, "of rows on disk"
    return OpenedRows(rows, label, None if prefix else rows.root.absolute(), rows.answer_field)


def _remote_location(source: str, spec: DatasetSpec, split: SourceSplit | None) -> str:
    scheme = source.partition("://")[0]
    if scheme not in _SCHEMES:
        raise DatasetError(f"{source}: {scheme}:// is not supported; use {', '.join(f'{s}://' for s in _SCHEMES)}.")
    if not _HUB_REPOSITORY.fullmatch(source):
        return source
    files = "**/*.parquet" if split is None or spec.hub is None else spec.hub_files.format(split=split.key)
    return f"{source.rstrip('/')}/{files}"


def _local_rows(
    path: Path,
    spec: DatasetSpec,
    images: Path | None,
    split: SourceSplit | None,
    answer_field: str,
    columns: Mapping[str, str],
    prefix: str,
) -> ParquetRows | JsonLinesRows | OfficialRows:
    if not path.exists():
        raise DatasetError(f"{path} does not exist: check the path of dataset `{spec.name}`.")
    folder = path if path.is_dir() else path.parent
    if path.is_dir():
        if has_official_files(path, spec, split.name if split else "validation"):
            if split is None:
                raise DatasetError(f"{path} holds official files, one split each: name one instead of `{ALL_ROWS}`.")
            return OfficialRows(path, spec, split=split, answer_field=answer_field, columns=columns, root=images)
        if next(path.rglob("*.parquet"), None) is None:
            path = _json_lines_file(path, spec, split)
    if path.suffix in (".jsonl", ".ndjson"):
        (name,) = relative_names(str(folder), [str(path)], folder.absolute().name)
        return JsonLinesRows(
            path, split=split, name=name, answer_field=answer_field, columns=columns, root=images or path.parent
        )
    if path.is_dir() or path.suffix == ".parquet":
        return ParquetRows(
            path, split=split, answer_field=answer_field, columns=columns, root=images, ref_prefix=prefix
        )
    raise DatasetError(
        f"{path} is neither .parquet nor .jsonl: name such a file, or a folder with {_expected(spec, split)}."
    )


def _json_lines_file(folder: Path, spec: DatasetSpec, split: SourceSplit | None) -> Path:
    """Returns the JSON Lines file of `folder`, or the one of the split asked for."""
    found = sorted(str(file) for file in folder.rglob("*") if file.suffix in (".jsonl", ".ndjson"))
    if not found:
        raise DatasetError(f"{folder} holds no {_expected(spec, split)}: check the path of dataset `{spec.name}`.")
    files = relative_names(str(folder), found, folder.absolute().name)
    names = list(files if split is None else split.files(list(files)))
    if split is not None and not names:
        raise split.refusal(folder, files)
    if len(names) > 1:
        raise DatasetError(f"{folder} holds several files, of which one is read: name one of {', '.join(names[:12])}.")
    return Path(files[names[0]])


def _expected(spec: DatasetSpec, split: SourceSplit | None) -> str:
    official = ""
    if spec.questions_file is not None:
        name = official_name(split.name if split else "validation")
        official = f"{spec.questions_file.format(split=name)}, no "
    return f"{official}Parquet files and no .jsonl file"


@dataclass(frozen=True)
class ImageRoots:
    """Where a dataset's image references start."""

    dataset: str
    source: str | None  # what the samples were read from: a path or an address; `file.parquet#row` starts at its folder
    images: Path | None  # where paths start
    named: Path | None = None  # the images' folder given for this run; it may hold the Parquet files too
    column: str = "image"  # of images in Parquet files

    @classmethod
    def recorded(
        cls, dataset: str, record: Mapping[str, Any], *, source: Path | None = None, images: Path | None = None
    ) -> ImageRoots:
        """Returns the roots that a cache's manifest records (`SampleSet.to_dict`), or those given for this run."""
        kept, kept_images = record.get("source"), record.get("images")
        if "images" not in record and kept is not None and _is_local(kept):
            kept_images = _folder(Path(kept))  # a cache that does not record it: beside the data
        found = images or (None if kept_images is None else Path(kept_images))
        column = (record.get("columns") or {}).get("image", "image")
        return cls(dataset, kept if source is None else str(source), found, images, column)

    def parquet_root(self, file: str) -> Path:
        """Returns the folder of a Parquet file: the images' folder given for this run if the file is there."""
        if self.named is not None and (self.named / file).is_file():
            return self.named
        advice = f"name the folder that holds {file} with --dataset {self.dataset}=FOLDER."
        if self.source is None or not _is_local(self.source):
            raise DatasetError(f"where dataset `{self.dataset}` was read from is not known here: {advice}")
        source = Path(self.source)
        if not source.exists():
            raise DatasetError(f"{source}, where dataset `{self.dataset}` was read from, does not exist: {advice}")
        return _folder(source)


def _is_local(source: str) -> bool:
    return not (source.startswith(BUNDLED_PREFIX) or is_remote(source))


def _folder(source: Path) -> Path:
    return source if source.is_dir() else source.parent


def image_from_ref(ref: str, roots: ImageRoots) -> ImageSource:
    """Returns the image that a cache's `image_ref` names: a path, `file.parquet#row`, a bundled one or an address.

    Raises DatasetError when a root is needed and not known or not there, or when the reference leads out of it.
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
        raise DatasetError(
            f"image {short_name(ref)} is relative to a folder that is not known here: name it with --images."
        )
    return image_file(roots.images, path, where)
