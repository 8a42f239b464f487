"""The source of a dataset's rows: official files, Parquet or JSON Lines, on disk, in the package or on the hub."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import DatasetError
from ..paths import BUNDLED_PREFIX, BUNDLED_ROOT
from .json_files import JsonLinesRows, OfficialRows, has_official_files, official_name
from .parquet_files import ParquetRows
from .records import Rows, utf8
from .registry import DatasetSpec
from .remote_images import is_remote
from .source_split import ALL_ROWS, SourceSplit, relative_names

_SCHEMES = ("hf", "https", "http", "file")
_HUB_REPOSITORY = re.compile(r"hf://datasets/[^/]+/[^/]+/?")


@dataclass(frozen=True)
class OpenedRows:
    """A dataset's rows and where they were found."""

    rows: Rows
    label: str
    images_root: Path | None  # absolute folder that image paths are relative to; None: the images need no folder
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
    """Returns the rows of `spec` from the first of `source`, `root/<name>`, the bundled files and the hub mirror.

    Raises DatasetError if the source does not exist, cannot be read, or does not identify the rows of `split`.
    """
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
        raise DatasetError(f"{images} is not a folder: --images must name the folder that image paths are relative to.")
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
                raise DatasetError(
                    f"{path} holds official files, one for each split: name a split instead of `{ALL_ROWS}`."
                )
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
    """Returns the JSON Lines file of `folder`, or that of the requested split."""
    found = sorted(str(file) for file in folder.rglob("*") if file.suffix in (".jsonl", ".ndjson"))
    if not found:
        raise DatasetError(f"{folder} holds no {_expected(spec, split)}: check the path of dataset `{spec.name}`.")
    files = relative_names(str(folder), found, folder.absolute().name)
    names = list(files if split is None else split.files(list(files)))
    if split is not None and not names:
        raise split.refusal(folder, files)
    if len(names) > 1:
        raise DatasetError(
            f"{folder} holds several files, but only one can be read: name one of {', '.join(names[:12])}."
        )
    return Path(files[names[0]])


def _expected(spec: DatasetSpec, split: SourceSplit | None) -> str:
    official = ""
    if spec.questions_file is not None:
        name = official_name(split.name if split else "validation")
        official = f"{spec.questions_file.format(split=name)}, no "
    return f"{official}Parquet files and no .jsonl file"
