"""The source's splits: which files and rows of a published dataset belong to the split that a run reads.

They are identified by folder and file names and by columns, with the words by which Hugging Face `datasets` recognises
splits in file names. Independent of the cache's own train, val and test (`cache_split.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from ..errors import DatasetError

ALL_ROWS = "all"  # instead of a split: every row, regardless of names and columns
SPLIT_COLUMNS = ("split", "set_name", "data_split", "dataset_split", "partition")  # the first existing one is read

_KEYS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation", "testdev", "teststd"),
}
_KEY_OF_WORD = {word: {key} for key, words in _KEYS.items() for word in words} | {"trainval": {"train", "validation"}}
_TEST_SERVER = re.compile(r"test[-_. ]?(dev|std)")  # VQA's `test-dev2015` is a part of test
_LISTED = 12


def split_key(text: str) -> str:
    """Returns train, validation or test for any of their spellings (`val2014`), and other names in lower case."""
    words = _words(text) if re.fullmatch(r"[\w\s.-]*", text) else []  # not a printed list or a path
    known = [_KEY_OF_WORD.get(word, set()) for word in words]
    return next(iter(known[0])) if len(known) == 1 and len(known[0]) == 1 else text.strip().lower()


def _words(part: str) -> list[str]:
    joined = _TEST_SERVER.sub(r"test\1", part.lower())
    return [word for word in re.split(r"[\W\d_]+", joined) if word]


@dataclass(frozen=True)
class SourceSplit:
    """The split of a published dataset whose rows are read."""

    name: str
    requested: bool = True  # False: the dataset's usual split, not requested by the user

    @property
    def key(self) -> str:
        return split_key(self.name)

    def matches(self, value: object) -> bool:
        """Returns whether a value of a split column means this split."""
        return value is not None and split_key(str(value)) == self.key

    def named_in(self, path: str) -> set[str]:
        """Returns the splits that the folders and the file name of a relative path name."""
        parts = [*PurePosixPath(path).parent.parts, PurePosixPath(path).stem]
        if self.key not in _KEYS:
            spelt = re.compile(rf"(?:^|[\W_]){re.escape(self.key)}(?:$|[\W_])")
            if any(spelt.search(part.lower()) for part in parts):
                return {self.key}
        return {key for part in parts for word in _words(part) for key in _KEY_OF_WORD.get(word, ())}

    def files(self, paths: Sequence[str]) -> dict[str, bool]:
        """Returns the paths that may hold the split, each with whether its name says that all its rows are in it.

        A path that names only other splits is left out, unless it is the only path: then a column may still identify
        the rows.
        """
        named = {path: self.named_in(path) for path in paths}
        spelt_out = self.key not in _KEYS and any(self.key in names for names in named.values())
        return {
            path: names == {self.key}
            for path, names in named.items()
            if self.key in names or not (names or spelt_out) or len(paths) == 1
        }

    def rows(self, entries: Sequence[Mapping[str, Any]], column: str | None) -> tuple[list[bool] | None, list[object]]:
        """Returns which JSON rows are in the split (None if no column identifies splits), and the values found."""
        present = {name.lower(): name for entry in entries for name in entry}
        column = column or next((present[name] for name in SPLIT_COLUMNS if name in present), None)
        values = [entry.get(column) for entry in entries] if column is not None else []
        if all(value is None for value in values):
            return None, []
        return [self.matches(value) for value in values], list({str(value): value for value in values}.values())

    def accepts_unmarked(self, paths: Sequence[str]) -> bool:
        """Returns whether the only file, which names no split, is assumed to hold this one: not if it was requested."""
        return not self.requested and len(paths) == 1 and not self.named_in(paths[0])

    def refusal(
        self, source: object, paths: Iterable[str], values: Mapping[str, Iterable[object]] | None = None
    ) -> DatasetError:
        """Returns the error for files in which the split is not identified, with the files and values found."""
        paths = list(paths)
        named = [self.named_in(path) for path in paths]
        seen = [f"files {_listed(paths)}"]
        seen += [f"column `{name}` with {_listed(map(_shown, found))}" for name, found in (values or {}).items()]
        if values:
            problem = f"has no rows of split `{self.name}`"
        elif all(names and self.key not in names for names in named):
            problem = f"has no files of split `{self.name}`, only of {', '.join(sorted(set().union(*named)))}"
        else:
            problem = f"does not identify the rows of split `{self.name}` by folders, file names or a column"
        return DatasetError(
            f"{source} {problem}; it has {', and '.join(seen)}. Name the file or folder of that split, another split "
            f"with --source-split DATASET=SPLIT ({ALL_ROWS}: every row), or the column that holds the splits with "
            "--column DATASET.split=COLUMN."
        )

    def unmarked_note(self, path: object) -> str:
        """Returns the warning about a file that `accepts_unmarked` accepts."""
        return (
            f"{path} does not name its split; all its rows are read as `{self.name}`, the usual one: "
            "check that the model was not trained on them."
        )


def relative_names(base: str, files: Iterable[str], folder: str) -> dict[str, str]:
    """Returns the files by their paths below `base`; if only the folder `base` names a split, its name is prepended.

    Args:
        base: Path or URL of the folder, a prefix of all `files`.
        folder: Its name.
    """
    found = {file.removeprefix(f"{base}/"): file for file in files}
    any_split = SourceSplit("train")
    if split_key(folder) in _KEYS and not any(any_split.named_in(name) for name in found):
        return {f"{folder}/{name}": file for name, file in found.items()}
    return found


def _shown(value: object) -> str:
    return "nothing" if value is None else repr(value)[:40]


def _listed(items: Iterable[str]) -> str:
    names = sorted(items)
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
