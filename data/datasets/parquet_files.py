"""Datasets in Parquet: hub mirrors, bundled datasets and your own. All columns but the images are read first."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import polars as pl

from ..errors import DatasetError
from ..samples import ImageSource
from .columns import as_text, check_columns, class_labels, text_column
from .images import image_file, short_name
from .parquet_images import PARQUET_ERRORS, ParquetImage, check_not_a_bomb, first_line
from .records import Record, answer_texts, identifier, question_text, utf8
from .remote_images import fetch, hub_location, is_remote
from .source_split import SPLIT_COLUMNS, SourceSplit, relative_names

MAX_ROWS = 20_000_000
_FILE_COLUMN = "knobctl: file"
_FILES_AT_ONCE = 8
_LABELLED = ("question", "answers", "split")  # fields whose class labels are read by name
_REPOSITORY = re.compile(r"hf://datasets/[^/]+/[^/]+")


class ParquetRows:
    """The rows of one or more Parquet files with image, question and answers."""

    def __init__(
        self,
        source: str | Path,
        *,
        split: SourceSplit | None,
        answer_field: str,
        columns: Mapping[str, str],
        root: Path | None = None,
        ref_prefix: str = "",
    ) -> None:
        """Reads every column but the images. Relative image paths start from `root`, by default the folder."""
        self._answer_field = answer_field
        self._image_column = columns.get("image", "image")
        self._ref_prefix = ref_prefix
        self.faults: list[tuple[str, DatasetError]] = []
        self.notes: list[str] = []
        if is_remote(str(source)):
            self.root, self._folder = root, None
            files = _remote_files(str(source)) if split else {str(source): str(source)}
        else:
            path = Path(source)
            self._folder = path if path.is_dir() else path.parent
            self.root = root or self._folder
            folder = self._folder.absolute().name
            files = relative_names(str(self._folder), map(str, _local_files(path)), folder)
        frames = list(self._frames_of(source, files, split, columns))
        self._frames, self.question_ids = self._with_ids([frame for frame in frames if frame.height])
        self._starts = [0]
        for frame in self._frames:
            self._starts.append(self._starts[-1] + frame.height)
        if not self._frames and not self.faults:
            raise DatasetError(f"{source} has no rows: check the files.")
        kinds = {_answers_kind(frame.schema["answers"]) for frame in self._frames}
        self.answer_field = answer_field if kinds == {"objects"} else None

    def _frames_of(
        self, source: str | Path, files: Mapping[str, str], split: SourceSplit | None, columns: Mapping[str, str]
    ) -> Iterator[pl.DataFrame]:
        """Yields the rows of `split`, file by file. Raises DatasetError if files or columns do not identify them."""
        self.split = None if split is None else split.key
        if split is None:
            for file in files.values():
                yield _read_small_columns(file, None, columns)[0]
            return
        names = split.files(list(files))
        seen: defaultdict[str, set[object]] = defaultdict(set)
        unidentified, rows = [], 0
        with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:  # on the hub, each thread waits for its own requests
            tables = list(pool.map(lambda name: _read_small_columns(files[name], split, columns), names))
        for (name, is_named), (frame, column) in zip(names.items(), tables, strict=True):
            if column is not None:
                frame, values = _of_split(frame, split)
                seen[column] |= values
            elif not is_named and split.accepts_unmarked(list(files)):
                self.split = None
                self.notes.append(split.unmarked_note(files[name]))
            elif not is_named:
                unidentified.append(name)
            rows += frame.height
            yield frame
        if unidentified or not rows:
            raise split.refusal(source, files, seen)

    def _with_ids(self, frames: Sequence[pl.DataFrame]) -> tuple[list[pl.DataFrame], list[str]]:
        """Returns the rows with a usable id and their ids; without a `question_id` column, the id is the row number."""
        kept: list[pl.DataFrame] = []
        ids: list[str] = []
        start = 0
        for frame in frames:
            if "question_id" not in frame.columns:
                ids.extend(map(str, range(start, start + frame.height)))
                kept.append(frame)
            else:
                usable = []
                for value, file, row in zip(frame["question_id"], frame[_FILE_COLUMN], frame["row"], strict=True):
                    where = f"{file}, row {row}"
                    try:
                        ids.append(identifier(value, "question_id", where))
                        usable.append(True)
                    except DatasetError as error:
                        self.faults.append((where, error))
                        usable.append(False)
                kept.append(frame if all(usable) else frame.filter(pl.Series(usable, dtype=pl.Boolean)))
            start += frame.height
        return [frame for frame in kept if frame.height], ids

    def _at(self, row: int) -> tuple[dict[str, Any], str, int]:
        frame_index = bisect_right(self._starts, row) - 1
        values = self._frames[frame_index].row(row - self._starts[frame_index], named=True)
        return values, values[_FILE_COLUMN], values["row"]

    def where(self, row: int) -> str:
        """Returns the path and the row within the file."""
        _, file, file_row = self._at(row)
        return f"{file}, row {file_row}"

    def record(self, row: int) -> Record:
        """Returns the validated row."""
        values, file, file_row = self._at(row)
        where = f"{file}, row {file_row}"
        image_id = values.get("image_id")
        return Record(
            question_id=self.question_ids[row],
            question=question_text(values["question"], where),
            answers=answer_texts(values["answers"], self._answer_field, where),
            image_id=None if image_id is None else identifier(image_id, "image_id", where),
            image=self._image(values, file, file_row, where),
        )

    def prefetch(self, rows: Sequence[int]) -> None:
        """Fetches the images of `rows` if they are on the hub, file by file."""
        if self._folder is not None:
            return
        by_file: dict[str, list[int]] = {}
        for row in rows:
            values, file, file_row = self._at(row)
            if "image" not in values:
                by_file.setdefault(file, []).append(file_row)
        for file, file_rows in sorted(by_file.items()):
            try:
                fetch(file, self._image_column, file_rows)
            except PARQUET_ERRORS as error:
                raise DatasetError(
                    f"{file} cannot be read ({first_line(error)}): run the same command again."
                ) from error

    def _image(self, values: dict[str, Any], file: str, file_row: int, where: str) -> ImageSource:
        if "image" in values:  # a path; image bytes are not among the columns read
            if not isinstance(values["image"], str):
                raise DatasetError(f"{where}: `image` is empty: give the path of the image.")
            if self.root is None:
                name = short_name(values["image"])
                raise DatasetError(f"{where}: `image` is a path, {name!r}: name its folder with --images.")
            return image_file(self.root, values["image"], where)
        name = file if self._folder is None else Path(file).relative_to(self._folder).as_posix()
        return ParquetImage(file, file_row, self._image_column, f"{self._ref_prefix}{name}#{file_row}", self.root)


def _local_files(path: Path) -> list[Path]:
    """Returns the Parquet files at `path`: the file itself, or all below the folder."""
    if path.is_file():
        return [path]
    files = sorted(path.rglob("*.parquet"))
    if not files:
        raise DatasetError(f"{path} has no Parquet files: check the path.")
    for file in files:
        utf8(str(file), "the file's name", repr(str(file)))
    return files


def _remote_files(location: str) -> dict[str, str]:
    """Returns the files that a URL with wildcards matches, by their paths below its fixed part."""
    if "*" not in location:
        return _below_base(location, [hub_location(location)])
    try:
        found = pl.scan_parquet(location, include_file_paths=_FILE_COLUMN, glob=True).select(_FILE_COLUMN).unique()
        files = sorted(map(hub_location, found.collect()[_FILE_COLUMN]))
    except PARQUET_ERRORS as error:
        raise _unreadable(location, error) from error
    return _below_base(location, files)


def _below_base(location: str, files: Sequence[str]) -> dict[str, str]:
    repository = _REPOSITORY.match(files[0]) if files else None
    base = repository[0] if repository else location.partition("*")[0].rpartition("/")[0]
    return relative_names(base, files, base.rpartition("/")[2])


def _of_split(frame: pl.DataFrame, split: SourceSplit) -> tuple[pl.DataFrame, set[object]]:
    """Returns the rows whose column `split` is this split, and all values of that column."""
    values = set(frame["split"].unique())
    matching = [value for value in values if split.matches(value)]
    return frame.filter(pl.col("split").is_in(matching)), values


def _read_small_columns(
    location: str, split: SourceSplit | None, columns: Mapping[str, str]
) -> tuple[pl.DataFrame, str | None]:
    """Returns a table of the needed fields except image bytes, with the file and the row within it.

    Also returns the name of the column that holds the splits, whose values are in the table as `split`; None if no
    split is requested or no column has any.
    """
    scan = pl.scan_parquet(location, include_file_paths=_FILE_COLUMN, glob=is_remote(location))
    try:
        if not is_remote(location):
            check_not_a_bomb(location)
        schema = {name: kind for name, kind in scan.collect_schema().items() if name != _FILE_COLUMN}
        fields = _checked_columns(schema, location, columns)
        column = None if split is None else _split_column(schema, columns)
        if column is not None:
            fields["split"] = column
        expressions = [
            text_column(
                name, schema[name], class_labels(location, name, schema[name]) if field in _LABELLED else None
            ).alias(field)
            for field, name in fields.items()
        ]
        frame = scan.select(*expressions, _FILE_COLUMN).head(MAX_ROWS + 1).collect()
        if frame.height > MAX_ROWS:
            raise DatasetError(f"{location} has more than {MAX_ROWS:,} rows: split it.")
        frame = frame.with_columns(pl.int_range(pl.len(), dtype=pl.Int64).over(_FILE_COLUMN).alias("row"))
        if column is not None:
            if frame.schema["split"] != pl.String:  # such values match no split, but the error lists them
                texts = [None if value is None else str(value) for value in frame["split"].to_list()]
                frame = frame.with_columns(pl.Series("split", texts, dtype=pl.String))
            if frame["split"].null_count() == frame.height:
                column = None
        files = {file: hub_location(file) for file in frame[_FILE_COLUMN].unique().to_list()}
        return frame.with_columns(pl.col(_FILE_COLUMN).replace(files)), column
    except PARQUET_ERRORS as error:
        raise _unreadable(location, error) from error


def _unreadable(location: str, error: BaseException) -> DatasetError:
    advice = "check the path and the file."
    if is_remote(location):
        advice = "check the URL and the connection, or name files on disk as NAME=PATH."
    return DatasetError(f"{location} cannot be read as Parquet ({first_line(error)}): {advice}")


def _split_column(schema: Mapping[str, Any], columns: Mapping[str, str]) -> str | None:
    by_name = {name.lower(): name for name in schema}
    return columns.get("split") or next((by_name[name] for name in SPLIT_COLUMNS if name in by_name), None)


def _checked_columns(schema: Mapping[str, Any], location: str, columns: Mapping[str, str]) -> dict[str, str]:
    """Returns the column of each field to read; a column of image bytes is not included."""
    check_columns(columns, schema, location)
    answers = next((name for name in ("answers", "answer") if name in schema), "answers")
    fields = {"question": "question", "answers": answers, "question_id": "question_id", "image_id": "image_id"}
    fields = {**fields, "image": "image", **columns}
    missing = [name for name in ("image", "question", "answers") if fields[name] not in schema]
    if missing:
        hint = "name other columns with --column FIELD=COLUMN"
        if "images" in schema and "image" in missing:
            hint += "; of a list column `images`, copy the first image of each row into a column `image`"
        raise DatasetError(f"{location} does not have the columns {missing}, only {list(schema)}: {hint}.")
    _answers_kind(as_text(schema[fields["answers"]]), f"{location}: column `{fields['answers']}`")
    kind = schema[fields["image"]]
    read = {field: column for field, column in fields.items() if column in schema and field not in ("image", "split")}
    if isinstance(kind, pl.String | pl.Categorical | pl.Enum):
        return {**read, "image": fields["image"]}
    is_struct = isinstance(kind, pl.Struct) and {"bytes", "path"} & {field.name for field in kind.fields}
    if kind != pl.Binary and not is_struct:
        lists = ": a row has one image, so copy the first of each list into a column `image`"
        raise DatasetError(
            f"{location}: column `{fields['image']}` must be a struct of bytes and path, bytes, or a path as text, not "
            f"{kind}{lists if isinstance(kind, pl.List | pl.Array) else ''}."
        )
    return read


def _answers_kind(kind: Any, where: str = "") -> str:
    """Returns "objects" or "texts". Raises DatasetError for a type that cannot hold answers."""
    inner = kind.inner if isinstance(kind, pl.List | pl.Array) else kind
    if isinstance(inner, pl.Struct) and "answer" in {field.name for field in inner.fields}:
        return "objects"
    if inner in (pl.String, pl.Null, pl.Boolean) or inner.is_numeric():
        return "texts"
    raise DatasetError(
        f"{where} must hold texts, numbers, or objects with `answer`, one or a list of them, not {kind}."
    )
