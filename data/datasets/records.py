"""One row of a dataset as its reader hands it over, and the checks that every format shares."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Protocol

from ..errors import DatasetError
from ..files.bounded_json import parse_json
from ..samples import ImageSource

MAX_TEXT = 20_000  # characters of a question or an answer
MAX_ID = 256
MAX_ANSWERS = 1_000
MAX_ANSWERS_TEXT = 1 << 20  # characters of answers that were written as JSON text

# One text that stands for several answers as Python or numpy print them: ['a', 'b'], array(['a'], dtype=object),
# ('a', 'b'), b'a', "[\"a\"]", or such a text cut short.
_PRINTED = re.compile(
    r"""[\[{].*[\]}] | [\[{]\s*[bu]?['"].* | \(\s*[bu]?['"].*['"]\s*,.*\) | [A-Za-z_][\w.]*\(\s*[\[{('"].*\)
    | b(['"]).*\1 | "\s*[\[{].*" | .*\bdtype:\s\w+""",
    re.DOTALL | re.VERBOSE,
)


@dataclass(frozen=True)
class Record:
    """A validated row."""

    question_id: str
    question: str
    answers: tuple[str, ...]
    image_id: str | None  # None: the dataset has none, and the sha256 of the image bytes takes its place
    image: ImageSource


class Rows(Protocol):
    """A dataset's rows, read late: ids at once, a record when asked for."""

    faults: list[tuple[str, DatasetError]]  # (where, reason) of rows without a usable id or form: not among the ids
    notes: list[str]  # warnings about the source
    split: str | None  # the split that all rows are known to be of

    @property
    def question_ids(self) -> list[str]:
        """The id of every usable row, in the order of the source."""

    def where(self, row: int) -> str:
        """Path and row, for messages."""

    def record(self, row: int) -> Record:
        """Returns the row, checked. Raises DatasetError with path and row."""

    def prefetch(self, rows: Sequence[int]) -> None:
        """Fetches the images of `rows` together, where one at a time would be slow."""


def identifier(value: Any, name: str, where: str) -> str:
    """Returns an id as text. Sources write the same id as number or text, so 7, 7.0 and "7" are one id."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise DatasetError(f"{where}: `{name}` must be a number or text, not {value!r}.")
    if len(value) > MAX_ID or not value.isprintable():
        raise DatasetError(f"{where}: `{name}` must be at most {MAX_ID} printable characters: {value[:40]!r}.")
    return value


def question_text(value: Any, where: str) -> str:
    """Returns the question as written."""
    if not isinstance(value, str) or not value.strip():
        raise DatasetError(f"{where}: `question` must be text, not {value!r}.")
    return _whole_text(value, "the question", where)


def image_path(value: Any, where: str) -> str:
    """Returns the path of an image as written."""
    if isinstance(value, list):
        raise DatasetError(f"{where}: `image` is a list of {len(value)}: give one path, a row for each image.")
    if not isinstance(value, str):
        raise DatasetError(f"{where}: `image` must be a path, not {str(value)[:40]!r}.")
    return _whole_text(value, "the image's path", where)


def _whole_text(text: str, what: str, where: str) -> str:
    if len(text) > MAX_TEXT:
        raise DatasetError(f"{where}: {what} has {len(text):,} characters, and {MAX_TEXT:,} is the limit.")
    return utf8(text, what, where).decode()


def utf8(text: str, what: str, where: str) -> bytes:
    """Returns `text` encoded. Raises DatasetError for a lone surrogate, which JSON can hold and UTF-8 cannot."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise DatasetError(
            f"{where}: {what} has a lone surrogate at character {error.start} ({text[error.start]!r}), which UTF-8 "
            "cannot hold: write it again."
        ) from error


def answer_texts(value: Any, answer_field: str, where: str) -> tuple[str, ...]:
    """Returns the reference answers: one answer, a list of them, or objects, of which `answer_field` is taken.

    An answer is a text, number or boolean. One text that holds a JSON list or object is read as that; what Python or
    numpy print for a list is refused, since as one answer it would never match. Inside a list every text is taken as it
    is. Nulls and blank texts are left out; if nothing else is there, the question cannot be scored, which is an error.
    Repeated answers stay, since metrics count them.
    """
    if isinstance(value, str):
        value = _parsed(value, where)
    if isinstance(value, Mapping):
        value = _field(value, answer_field, where)
    items = value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else [value]
    if len(items) > MAX_ANSWERS:
        raise DatasetError(f"{where}: there are {len(items):,} answers, and {MAX_ANSWERS:,} is the limit.")
    answers = tuple(text for item in items if (text := _answer_text(item, answer_field, where)).strip())
    if not answers:
        raise DatasetError(
            f"{where}: the question has no answers (a test split, perhaps), so that it cannot be scored: "
            "use a split with answers."
        )
    return answers


def _parsed(text: str, where: str) -> Any:
    """Returns the list or object that `text` holds as JSON; a text that holds none stays as it is."""
    inner = text.strip()
    if not _PRINTED.fullmatch(inner):
        return text
    data = utf8(inner, "the text of `answers`", where)
    if inner[0] in "[{" and len(inner) <= MAX_ANSWERS_TEXT:
        try:
            return parse_json(data, where, error=DatasetError)
        except DatasetError:
            pass  # not JSON: said below
    raise DatasetError(
        f"{where}: `answers` is the text {text[:60]!r}, which looks like a list that was written as text: give a list, "
        "or JSON. If it is one answer, give a list of that one."
    )


def _field(item: Mapping[str, Any], answer_field: str, where: str) -> Any:
    for name in (answer_field, "answer"):
        if name in item:
            return item[name]
    raise DatasetError(f"{where}: an answer object lacks `answer`; it has {sorted(map(str, item))[:10]}.")


def _answer_text(item: Any, answer_field: str, where: str) -> str:
    """Returns one answer as text; a missing one is empty."""
    if isinstance(item, Mapping):
        item = _field(item, answer_field, where)
    if item is None or (isinstance(item, float) and math.isnan(item)):  # how pandas writes a missing text
        return ""
    if isinstance(item, bool):
        return str(item).lower()
    if isinstance(item, int | float | Decimal) and math.isfinite(item):
        return str(int(item)) if item == int(item) else str(item)
    if not isinstance(item, str):
        raise DatasetError(f"{where}: an answer must be text or a number, not {str(item)[:40]!r}.")
    return _whole_text(item, "an answer", where)
