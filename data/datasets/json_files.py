"""Datasets in JSON: the official VQA v2, OK-VQA and TextVQA files, and a user's own JSON Lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import DatasetError
from ..files.bounded_json import parse_json, read_json
from ..samples import ImageSource
from .columns import check_columns, with_fields
from .images import image_file
from .records import Record, answer_texts, identifier, image_path, question_text
from .registry import DatasetSpec
from .source_split import SourceSplit, split_key

MAX_JSON_BYTES = 1 << 30  # four times the largest official file (VQA v2, train annotations)
MAX_LINE_BYTES = 4 << 20

_FOLDERS = (".", "annotations", "questions", "Annotations", "Questions")


class OfficialRows:
    """A dataset's official files: questions, answers in the same or a second file, and image folders."""

    def __init__(
        self,
        folder: Path,
        spec: DatasetSpec,
        *,
        split: SourceSplit,
        answer_field: str,
        columns: Mapping[str, str],
        root: Path | None = None,
    ) -> None:
        """Reads the JSON files. `root` is the image folder, by default `folder`."""
        assert spec.questions_file is not None
        if "image" in columns:
            raise DatasetError(
                f"{folder}: the official files identify images by `image_id`: leave out --column image=..."
            )
        self._spec = spec
        self._answer_field = answer_field
        self._split = official_name(split.name)
        self.split: str | None = split.key
        self.notes: list[str] = []
        self.faults: list[tuple[str, DatasetError]] = []
        self.root = root or folder
        self._path = _find(folder, spec.questions_file.format(split=self._split))
        document = _document(self._path)
        questions = _entries(document, self._path, "data" if spec.annotations_file is None else "questions")
        present = {name for entry in questions for name in entry}
        self._annotations: dict[str, Any] | None = None
        self.answer_field: str | None = None
        if spec.annotations_file is not None:
            self.answer_field = answer_field
            self._annotations_path = _find(folder, spec.annotations_file.format(split=self._split))
            annotations = _document(self._annotations_path)
            for key in ("data_type", "data_subtype"):
                if key in document and key in annotations and document[key] != annotations[key]:
                    raise DatasetError(
                        f"{self._path} has {key} {document[key]!r} and {self._annotations_path} "
                        f"{annotations[key]!r}: use both files of one split."
                    )
            entries = _entries(annotations, self._annotations_path, "annotations")
            present |= {name for entry in entries for name in entry}
            self._annotations = {}
            for row, plain in enumerate(entries):
                entry, where = with_fields(plain, columns), f"{self._annotations_path}, row {row}"
                try:
                    key = identifier(entry.get("question_id"), "question_id", where)
                    if self._annotations.setdefault(key, entry) != entry:
                        raise DatasetError(f"{where}: question_id {key} occurs twice, with different answers.")
                except DatasetError as error:
                    self.faults.append((where, error))
        check_columns(columns, present, self._path)
        subtype = document.get("data_subtype")
        if isinstance(subtype, str) and not split.matches(subtype):
            raise split.refusal(folder, [self._path.name], {"data_subtype": [subtype]})
        matching, values = split.rows(questions, columns.get("split"))
        if matching is not None and not any(matching):
            raise split.refusal(folder, [self._path.name], {columns.get("split", "set_name"): values})
        self._questions: list[tuple[int, dict[str, Any]]] = []
        self.question_ids: list[str] = []
        for row, plain in enumerate(questions):
            entry, where = with_fields(plain, columns), f"{self._path}, row {row}"
            if matching is not None and not matching[row]:
                continue
            try:
                self.question_ids.append(identifier(entry.get("question_id"), "question_id", where))
                self._questions.append((row, entry))
            except DatasetError as error:
                self.faults.append((where, error))

    def where(self, row: int) -> str:
        """Returns path and row."""
        return f"{self._path}, row {self._questions[row][0]}"

    def record(self, row: int) -> Record:
        """Returns the validated question with its answers."""
        entry, where, question_id = self._questions[row][1], self.where(row), self.question_ids[row]
        answers = entry.get("answers")
        if self._annotations is not None:
            annotation = self._annotations.get(question_id)
            if annotation is None:
                raise DatasetError(
                    f"{where}: question_id {question_id} has no answers in {self._annotations_path}: "
                    "use both files of one split."
                )
            answers = annotation.get("answers")
        image_id = identifier(entry.get("image_id"), "image_id", where)
        return Record(
            question_id=question_id,
            question=question_text(entry.get("question"), where),
            answers=answer_texts(answers, self._answer_field, where),
            image_id=image_id,
            image=self._image(image_id, where),
        )

    def prefetch(self, rows: Sequence[int]) -> None:
        """Does nothing: the images are files already."""

    def _image(self, image_id: str, where: str) -> ImageSource:
        name = self._spec.image_name.format(image_id=image_id, split=self._split)
        images = [image_file(self.root, f"{folder}/{name}", where) for folder in self._image_folders]
        # A missing image is reported when it is read, with its path in the first existing folder.
        return next((image for image in images if image.path.exists()), images[0])

    @cached_property
    def _image_folders(self) -> list[str]:
        folders = [folder.format(split=self._split) for folder in self._spec.image_folders]
        found = [folder for folder in (*folders, ".") if (self.root / folder).is_dir()]
        if not found:
            raise DatasetError(f"{self.root} is not a folder: name the image folder with --images.")
        return found


class JsonLinesRows:
    """JSON Lines: one object per line with image (a path), question and answers."""

    def __init__(
        self,
        path: Path,
        *,
        split: SourceSplit | None,
        name: str,
        answer_field: str,
        columns: Mapping[str, str],
        root: Path | None = None,
    ) -> None:
        """Reads all lines. `name` is the path that may name a split; image paths are relative to `root`."""
        self._path = path
        self._answer_field = answer_field
        self.answer_field: str | None = None
        self.root = root or path.parent
        self.faults: list[tuple[str, DatasetError]] = []
        self.notes: list[str] = []
        self.split = None if split is None else split.key
        entries: list[tuple[int, dict[str, Any]]] = []
        for number, line in enumerate(_lines(path), start=1):
            where = f"{path}, line {number}"
            try:
                if line.strip():
                    entries.append((number, _object(line, where)))
            except DatasetError as error:
                self.faults.append((where, error))
        if not entries:
            raise self.faults[0][1] if self.faults else DatasetError(f"{path} has no rows: check the file.")
        check_columns(columns, {column for _, entry in entries for column in entry}, path)
        if split is not None:
            entries = self._of_split(entries, split, name, columns.get("split"))
        self._entries: list[tuple[int, dict[str, Any]]] = []
        self.question_ids: list[str] = []  # a row without `question_id` has its line number
        for number, plain in entries:
            entry, where = with_fields(plain, columns), f"{path}, line {number}"
            try:
                self.question_ids.append(identifier(entry.get("question_id", number), "question_id", where))
                self._entries.append((number, entry))
            except DatasetError as error:
                self.faults.append((where, error))

    def _of_split(
        self, entries: list[tuple[int, dict[str, Any]]], split: SourceSplit, name: str, column: str | None
    ) -> list[tuple[int, dict[str, Any]]]:
        matching, values = split.rows([entry for _, entry in entries], column)
        if matching is not None:
            if not any(matching):
                raise split.refusal(self._path, [name], {column or "split": values})
            return [entry for entry, match in zip(entries, matching, strict=True) if match]
        if split.files([name])[name]:
            return entries
        if not split.accepts_unmarked([name]):
            raise split.refusal(self._path, [name])
        self.split = None
        self.notes.append(split.unmarked_note(self._path))
        return entries

    def where(self, row: int) -> str:
        """Returns path and line."""
        return f"{self._path}, line {self._entries[row][0]}"

    def record(self, row: int) -> Record:
        """Returns the validated row."""
        entry, where = self._entries[row][1], self.where(row)
        missing = [name for name in ("image", "question") if name not in entry]
        if missing:
            hint = " Copy one path of the list `images` into a field `image`." if "images" in entry else ""
            raise DatasetError(f"{where}: the fields {missing} are missing; it has {sorted(entry)}.{hint}")
        image_id = entry.get("image_id")
        return Record(
            question_id=self.question_ids[row],
            question=question_text(entry["question"], where),
            answers=answer_texts(entry.get("answers", entry.get("answer")), self._answer_field, where),
            image_id=None if image_id is None else identifier(image_id, "image_id", where),
            image=image_file(self.root, image_path(entry["image"], where), where),
        )

    def prefetch(self, rows: Sequence[int]) -> None:
        """Does nothing: the images are files already."""


def official_name(split: str) -> str:
    """Returns the split as spelled in official file names."""
    key = split_key(split)
    return "val" if key == "validation" else key


def has_official_files(folder: Path, spec: DatasetSpec, split: str) -> bool:
    """Returns whether `folder` holds the official questions file of the split."""
    name = (spec.questions_file or "").format(split=official_name(split))
    return bool(name) and any((folder / inner / name).is_file() for inner in _FOLDERS)


def _document(path: Path) -> dict[str, Any]:
    document = read_json(path, error=DatasetError, max_bytes=MAX_JSON_BYTES)
    if not isinstance(document, dict):
        raise DatasetError(
            f"{path} must hold a JSON object, as the official files do, not a {type(document).__name__}."
        )
    return document


def _find(folder: Path, name: str) -> Path:
    for inner in _FOLDERS:
        if (folder / inner / name).is_file():
            return folder / inner / name
    raise DatasetError(
        f"{folder / name} does not exist: put the dataset's official file there, or name a Parquet mirror."
    )


def _entries(document: dict[str, Any], path: Path, key: str) -> list[dict[str, Any]]:
    entries = document.get(key)
    if not isinstance(entries, list):
        raise DatasetError(
            f"{path} has no list `{key}`, only {sorted(document)[:10]}: check that it is the right file."
        )
    if not entries:
        raise DatasetError(f"{path}: the list `{key}` is empty.")
    for row, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise DatasetError(f"{path}, row {row}: must be an object, not {str(entry)[:40]!r}.")
    return entries


def _lines(path: Path) -> list[bytes]:
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise DatasetError(f"{path} has {size:,} bytes, and {MAX_JSON_BYTES:,} is the limit: split it.")
        return path.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines()
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({error.strerror or error}): check the path.") from error


def _object(line: bytes, where: str) -> dict[str, Any]:
    if len(line) > MAX_LINE_BYTES:
        raise DatasetError(f"{where}: has {len(line):,} bytes, and {MAX_LINE_BYTES:,} is the limit.")
    entry = parse_json(line, where, error=DatasetError)
    if not isinstance(entry, dict):
        raise DatasetError(f"{where}: must be a JSON object, not a {type(entry).__name__}.")
    return entry
