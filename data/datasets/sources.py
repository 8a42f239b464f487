"""Where a dataset's rows come from: official files, Parquet or JSON Lines, on disk, in the package or on the hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import DatasetError
from ..samples import ImageSource
from .images import image_file
from .json_files import JsonLinesRows, OfficialRows, has_official_files
from .parquet import ParquetRows
from .parquet_images import ParquetImage
from .records import Rows
from .registry import BUNDLED_ROOT, DatasetSpec, split_key
from .remote_images import is_remote

BUNDLED_PREFIX = "bundled:"  # of image references that need no root: the files come with the package
_SCHEMES = ("hf", "https", "http", "file")
_HUB_REPOSITORY = re.compile(r"hf://datasets/[^/]+/[^/]+/?")


@dataclass(frozen=True)
class OpenedRows:
    """A dataset's rows and where they were found."""

    rows: Rows
    label: str
    images_root: Path | None
    answer_field: str | None


def open_rows(
    spec: DatasetSpec,
    *,
    root: Path | None,
    source: str | Path | None,
    images: Path | None,
    split: str | None,
    answer_field: str,
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
    if images is not None and not images.is_dir():
        raise DatasetError(f"{images} is not a folder: --images names the folder where image paths start.")
    if is_remote(str(source)):
        location = _remote_location(str(source), spec, split)
        parquet = ParquetRows(location, split=split, answer_field=answer_field, root=images)
        return OpenedRows(parquet, location, parquet.root, parquet.answer_field)
    rows = _local_rows(Path(source), spec, images, split, answer_field, prefix)
    return OpenedRows(rows, label, rows.root, rows.answer_field)


def _remote_location(source: str, spec: DatasetSpec, split: str | None) -> str:
    scheme = source.partition("://")[0]
    if scheme not in _SCHEMES:
        raise DatasetError(f"{source}: {scheme}:// is not supported; use {', '.join(f'{s}://' for s in _SCHEMES)}.")
    if not _HUB_REPOSITORY.fullmatch(source):
        return source
    files = spec.hub_files if split is not None else "**/*.parquet"
    return f"{source.rstrip('/')}/{files.format(split=split_key(split or ''))}"


def _local_rows(
    path: Path, spec: DatasetSpec, images: Path | None, split: str | None, answer_field: str, prefix: str
) -> ParquetRows | JsonLinesRows | OfficialRows:
    if not path.exists():
        raise DatasetError(f"{path} does not exist: check the path of dataset `{spec.name}`.")
    if path.is_dir():
        if spec.questions_file is not None and has_official_files(path, spec, split or "validation"):
            return OfficialRows(path, spec, split=split or "validation", answer_field=answer_field, root=images)
        json_lines = sorted(path.glob("*.jsonl"))
        if next(path.rglob("*.parquet"), None) is None:
            if len(json_lines) != 1:
                raise DatasetError(
                    f"{path} holds no {_expected(spec, split)}: check the path of dataset `{spec.name}`."
                )
            path = json_lines[0]
    if path.suffix in (".jsonl", ".ndjson"):
        return JsonLinesRows(path, split=split, answer_field=answer_field, root=images)
    if path.is_dir() or path.suffix == ".parquet":
        return ParquetRows(path, split=split, answer_field=answer_field, root=images, ref_prefix=prefix)
    raise DatasetError(
        f"{path} is neither .parquet nor .jsonl: name such a file, or a folder with {_expected(spec, split)}."
    )


def _expected(spec: DatasetSpec, split: str | None) -> str:
    official = ""
    if spec.questions_file is not None:
        name = "val" if split_key(split or "validation") == "validation" else split
        official = f"{spec.questions_file.format(split=name)}, no "
    return f"{official}Parquet files and no single .jsonl file"


def images_root_of(source: str) -> Path | None:
    """Returns the folder that image references of a dataset read from `source` (`SampleSet.source`) are relative to.

    None where references need no folder (bundled, an address) or the source is no longer there.
    """
    if source.startswith(BUNDLED_PREFIX) or is_remote(source) or not Path(source).exists():
        return None
    return Path(source) if Path(source).is_dir() else Path(source).parent


def image_from_ref(ref: str, root: Path | None) -> ImageSource:
    """Returns the image that a cache's `image_ref` names: a path or `file.parquet#row` under `root`, or a bundled one.

    Raises DatasetError when `root` is needed and not given, or when the reference leads out of it.
    """
    path, _, row = ref.rpartition("#")
    if not row.isdecimal() or not path.endswith(".parquet"):
        path, row = ref, ""
    if is_remote(path):
        return ParquetImage(path, int(row or 0), "image", ref, root)
    if path.startswith(BUNDLED_PREFIX):
        path, root = path.removeprefix(BUNDLED_PREFIX), BUNDLED_ROOT
    if root is None:
        raise DatasetError(f"image {ref} is relative to a folder that is not known here: name it with --images.")
    file = image_file(root, path, f"image_ref {ref!r}")
    return ParquetImage(str(file.path), int(row), "image", ref, root) if row else file
