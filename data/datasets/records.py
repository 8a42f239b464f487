"""One row of a dataset as its reader returns it, and the checks that all formats share."""

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
MAX_ANSWERS_TEXT = 1 << 20  # characters of answers given as JSON text

# One text that holds several answers as printed by Python or numpy: ['a', 'b'], array(['a'], dtype=object),
# ('a', 'b'), b'a', "[\"a\"]", or a truncated text of this kind.
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
    image_id: str | None  # None: the dataset has none; the sha256 of the image bytes is used instead
    image: ImageSource


class Rows(Protocol):
    """A dataset's rows, read lazily: the ids first, a record on request."""

    faults: list[tuple[str, DatasetError]]  # (where, error) of unreadable rows, which are not among the ids
    notes: list[str]  # warnings about the source
    split: str | None  # split of the published dataset that all rows are known to be in

    @property
    def question_ids(self) -> list[str]:
        """The id of every usable row, in the order of the source."""

    def where(self, row: int) -> str:
        """Returns path and row, for messages."""

    def record(self, row: int) -> Record:
        """Returns the validated row. Raises DatasetError with path and row."""

    def prefetch(self, rows: Sequence[int]) -> None:
        """Fetches the images of `rows` together if fetching them one at a time would be slow."""


def identifier(value: Any, name: str, where: str) -> str:
    """Returns an id as text. Sources store the same id as number or text, so 7, 7.0 and "7" are one id."""
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
    """Returns the question, unchanged. Raises DatasetError if it is not text, blank or too long."""
    if not isinstance(value, str) or not value.strip():
        raise DatasetError(f"{where}: `question` must be text, not {value!r}.")
    return _whole_text(value, "the question", where)


def image_path(value: Any, where: str) -> str:
    """Returns the path of an image, unchanged. Raises DatasetError if it is not text or too long."""
    if isinstance(value, list):
        raise DatasetError(f"{where}: `image` is a list of {len(value)}: give one path, in a row for each image.")
    if not isinstance(value, str):
        raise DatasetError(f"{where}: `image` must be a path, not {str(value)[:40]!r}.")
    return _whole_text(value, "the image's path", where)


def _whole_text(text: str, what: str, where: str) -> str:
    if len(text) > MAX_TEXT:
        raise DatasetError(f"{where}: {what} has {len(text):,} characters, and {MAX_TEXT:,} is the limit.")
    return utf8(text, what, where).decode()


def utf8(text: str, what: str, where: str) -> bytes:
    """Returns `text` as UTF-8. Raises DatasetError for a lone surrogate, which JSON can hold but UTF-8 cannot."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise DatasetError(
            f"{where}: {what} has a lone surrogate at character {error.start} ({text[error.start]!r}), which UTF-8 "
            "cannot represent: correct the text."
        ) from error


def answer_texts(value: Any, answer_field: str, where: str) -> tuple[str, ...]:
    """Returns the reference answers of a question.

    Args:
        value: One answer, a list of answers, or objects with `answer_field` (or `answer`). An answer is a text,
            number or boolean. A text that holds a JSON list or object is parsed. A list as printed by Python or
            numpy is refused, because as one answer it would never match. Inside a list, texts are not parsed.
        answer_field: The field to read from answer objects.
        where: Path and row, for messages.

    Nulls and blank texts are left out. Repeated answers are kept, because metrics count them. Raises DatasetError if
    there is no answer, since the question could not be scored.
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
            f"{where}: the question has no answers, as in some test splits, so it cannot be scored: "
            "use a split with answers."
        )
    return answers


def _parsed(text: str, where: str) -> Any:
    """Returns the list or object that `text` holds as JSON; any other text is returned unchanged."""
    inner = text.strip()
    if not _PRINTED.fullmatch(inner):
        return text
    data = utf8(inner, "the text of `answers`", where)
    if inner[0] in "[{" and len(inner) <= MAX_ANSWERS_TEXT:
        try:
            return parse_json(data, where, error=DatasetError)
        except DatasetError:
            pass  # not JSON: reported below
    raise DatasetError(
        f"{where}: `answers` is the text {text[:60]!r}, which looks like a printed list: give a list or JSON. If it is "
        "a single answer, give a list with this one item."
    )


def _field(item: Mapping[str, Any], answer_field: str, where: str) -> Any:
    for name in (answer_field, "answer"):
        if name in item:
            return item[name]
    raise DatasetError(f"{where}: an answer object has no `answer`, only {sorted(map(str, item))[:10]}.")


def _answer_text(item: Any, answer_field: str, where: str) -> str:
    """Returns one answer as text; a missing answer is empty."""
    if isinstance(item, Mapping):
        item = _field(item, answer_field, where)
    if item is None or (isinstance(item, float) and math.isnan(item)):  # pandas stores a missing text as NaN
        return ""
    if isinstance(item, bool):
        return str(item).lower()
    if isinstance(item, int | float | Decimal) and math.isfinite(item):
        return str(int(item)) if item == int(item) else str(item)
    if not isinstance(item, str):
        raise DatasetError(f"{where}: an answer must be text or a number, not {str(item)[:40]!r}.")
    return _whole_text(item, "an answer", where)
