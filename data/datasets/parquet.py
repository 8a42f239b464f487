"""Datasets in Parquet: hub mirrors, the bundled ones, and a user's own. Only the small columns are read at once."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from ..errors import DatasetError
from ..samples import ImageSource
from .images import image_file, short_name
from .parquet_images import PARQUET_ERRORS, ParquetImage, check_not_a_bomb, first_line
from .records import Record, answer_texts, identifier, question_text
from .registry import SPLIT_ALIASES, split_key
from .remote_images import fetch, hub_location, is_remote

MAX_ROWS = 20_000_000
_FILE_COLUMN = "knobctl: file"
_SPLIT_COLUMNS = ("split", "set_name")


class ParquetRows:
    """The rows of one or more Parquet files with image, question and answers."""

    def __init__(
        self,
        source: str | Path,
        *,
        split: str | None,
        answer_field: str,
        root: Path | None = None,
        ref_prefix: str = "",
    ) -> None:
        """Reads every column but the images. `root` is where relative image paths start, by default the folder."""
        self._source = str(source)
        self._answer_field = answer_field
        self._ref_prefix = ref_prefix
        if is_remote(self._source):
            self.root, self._folder = root, None
            frames = [_read_small_columns(self._source, split)]
        else:
            path = Path(source)
            self._folder = path if path.is_dir() else path.parent
            self.root = root or self._folder
            frames = [_read_small_columns(str(file), split) for file in local_files(path, split)]
        self._frames = [frame for frame in frames if frame.height]
        self._starts = [0]
        for frame in self._frames:
            self._starts.append(self._starts[-1] + frame.height)
        if not self._frames:
            wanted = "rows" if split is None else f"rows of split `{split}`"
            raise DatasetError(f"{source} has no {wanted}: check the files, or name another split.")
        kinds = {_answers_kind(frame.schema[_one_of(frame, "answers", "answer")]) for frame in self._frames}
        self.answer_field = answer_field if kinds == {"objects"} else None

    def _at(self, row: int) -> tuple[dict[str, Any], str, int]:
        frame_index = bisect_right(self._starts, row) - 1
        values = self._frames[frame_index].row(row - self._starts[frame_index], named=True)
        return values, values[_FILE_COLUMN], values["row"]

    @cached_property
    def question_ids(self) -> list[str]:
        """The id of every row; where there is no `question_id` column, the row's number."""
        ids: list[str] = []
        for frame in self._frames:
            if "question_id" not in frame.columns:
                ids.extend(map(str, range(len(ids), len(ids) + frame.height)))
                continue
            for value, file, row in zip(frame["question_id"], frame[_FILE_COLUMN], frame["row"], strict=True):
                ids.append(identifier(value, "question_id", f"{file}, row {row}"))
        return ids

    def where(self, row: int) -> str:
        """Returns path and row within the file."""
        _, file, file_row = self._at(row)
        return f"{file}, row {file_row}"

    def record(self, row: int) -> Record:
        """Returns the row, checked."""
        values, file, file_row = self._at(row)
        where = f"{file}, row {file_row}"
        image_id = values.get("image_id")
        return Record(
            question_id=self.question_ids[row],
            question=question_text(values["question"], where),
            answers=answer_texts(values.get("answers", values.get("answer")), self._answer_field, where),
            image_id=None if image_id is None else identifier(image_id, "image_id", where),
            image=self._image(values, file, file_row, where),
        )

    def prefetch(self, rows: Sequence[int]) -> None:
        """Fetches the images of `rows` if they lie on the hub, file by file."""
        if self._folder is not None:
            return
        by_file: dict[str, list[int]] = {}
        for row in rows:
            values, file, file_row = self._at(row)
            if "image" not in values:
                by_file.setdefault(file, []).append(file_row)
        for file, file_rows in sorted(by_file.items()):
            try:
                fetch(file, "image", file_rows)
            except PARQUET_ERRORS as error:
                raise DatasetError(
                    f"{file} cannot be read ({first_line(error)}): run the same command again."
                ) from error

    def _image(self, values: dict[str, Any], file: str, file_row: int, where: str) -> ImageSource:
        if "image" in values:  # a path: images themselves are not among the columns read
            if not isinstance(values["image"], str):
                raise DatasetError(f"{where}: `image` is empty: name the image's file.")
            if self.root is None:
                name = short_name(values["image"])
                raise DatasetError(f"{where}: `image` is a path, {name!r}: give its folder with --images.")
            return image_file(self.root, values["image"], where)
        name = file if self._folder is None else Path(file).relative_to(self._folder).as_posix()
        return ParquetImage(file, file_row, "image", f"{self._ref_prefix}{name}#{file_row}", self.root)


def local_files(path: Path, split: str | None) -> list[Path]:
    """Returns the Parquet files at `path`; where file names tell splits apart, those of `split`."""
    if path.is_file():
        return [path]
    files = sorted(path.rglob("*.parquet"))
    if not files:
        raise DatasetError(f"{path} has no Parquet files: check the path.")
    if split is None:
        return files
    known = {alias for aliases in SPLIT_ALIASES.values() for alias in aliases}
    by_split = {file: key for file in files if (key := _split_in_name(file, known))}
    wanted = split_key(split)
    if not by_split:
        return files
    chosen = [file for file in files if by_split.get(file) == wanted]
    if not chosen:
        raise DatasetError(
            f"{path} has no files of split `{split}`, only of {', '.join(sorted(set(by_split.values())))}."
        )
    return chosen


def _split_in_name(file: Path, known: set[str]) -> str | None:
    """Hub files are called `validation-00000-of-00003.parquet`."""
    head = file.stem.split("-")[0].split("_")[0]
    return split_key(head) if head in known else None


def _read_small_columns(location: str, split: str | None) -> pl.DataFrame:
    """Returns all columns that are needed but the image bytes, with the file and the row within it."""
    scan = pl.scan_parquet(location, include_file_paths=_FILE_COLUMN, glob=is_remote(location))
    try:
        if not is_remote(location):
            check_not_a_bomb(location)
        schema = scan.collect_schema()
        names = _checked_columns(schema, location)
        rows_of_file = pl.int_range(pl.len(), dtype=pl.Int64)
        splits = [name for name in _SPLIT_COLUMNS if name in schema and schema[name] == pl.String][:1]
        frame = scan.select(*names, *splits, _FILE_COLUMN).head(MAX_ROWS + 1).collect()
        if frame.height > MAX_ROWS:
            raise DatasetError(f"{location} has more than {MAX_ROWS:,} rows: split it.")
        frame = frame.with_columns(rows_of_file.over(_FILE_COLUMN).alias("row"))
        if split is not None and splits:
            aliases = {split, *SPLIT_ALIASES.get(split_key(split), ())}
            frame = frame.filter(pl.col(splits[0]).is_in(sorted(aliases)))
        files = {file: hub_location(file) for file in frame[_FILE_COLUMN].unique().to_list()}
        return frame.with_columns(pl.col(_FILE_COLUMN).replace(files))
    except PARQUET_ERRORS as error:
        advice = "check path and file."
        if is_remote(location):
            advice = "check the address and the connection, or name files on disk as NAME=PATH."
        raise DatasetError(f"{location} cannot be read as Parquet ({first_line(error)}): {advice}") from error


def _checked_columns(schema: pl.Schema, location: str) -> list[str]:
    answers = [name for name in ("answers", "answer") if name in schema]
    missing = [name for name in ("image", "question") if name not in schema] + ([] if answers else ["answers"])
    if missing:
        raise DatasetError(f"{location} lacks the columns {missing}; it has {schema.names()}.")
    _answers_kind(schema[answers[0]], location)
    kind = schema["image"]
    names = ["question", answers[0], *(name for name in ("question_id", "image_id") if name in schema)]
    if kind == pl.String:
        return [*names, "image"]
    is_struct = isinstance(kind, pl.Struct) and {"bytes", "path"} & {field.name for field in kind.fields}
    if kind != pl.Binary and not is_struct:
        raise DatasetError(
            f"{location}: column `image` must be a struct of bytes and path, bytes, or a path as text, not {kind}."
        )
    return names


def _answers_kind(kind: Any, location: str = "") -> str:
    inner = kind.inner if isinstance(kind, pl.List | pl.Array) else kind
    if inner == pl.String:
        return "texts"
    if isinstance(inner, pl.Struct) and "answer" in {field.name for field in inner.fields}:
        return "objects"
    if inner == pl.Null:
        return "nulls"
    raise DatasetError(f"{location}: column `answers` must be a list of texts or of objects with `answer`, not {kind}.")


def _one_of(frame: pl.DataFrame, *names: str) -> str:
    return next(name for name in names if name in frame.columns)
