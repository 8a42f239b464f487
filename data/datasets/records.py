"""One row of a dataset as its reader hands it over, and the checks that every format shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..errors import DatasetError
from ..samples import ImageSource

MAX_TEXT = 20_000  # characters of a question or an answer
MAX_ID = 256
MAX_ANSWERS = 1_000


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

    @property
    def question_ids(self) -> list[str]:
        """The id of every row, in the order of the source."""

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
    if len(value) > MAX_TEXT:
        raise DatasetError(f"{where}: the question has {len(value):,} characters, and {MAX_TEXT:,} is the limit.")
    return value


def answer_texts(value: Any, answer_field: str, where: str) -> tuple[str, ...]:
    """Returns the reference answers: a text, a list of texts, or a list of objects, of which `answer_field` is taken.

    None, an empty list and nothing but empty texts all mean that the question has no answers, which is an error: it
    cannot be scored. Repeated answers stay, since metrics count them.
    """
    if isinstance(value, str):
        value = [value]
    if value is None or (isinstance(value, Sequence) and all(item is None or item == "" for item in value)):
        raise DatasetError(
            f"{where}: the question has no answers (a test split, perhaps), so that it cannot be scored: "
            "use a split with answers."
        )
    if not isinstance(value, Sequence) or len(value) > MAX_ANSWERS:
        raise DatasetError(
            f"{where}: `answers` must be a list of at most {MAX_ANSWERS} texts, not {str(value)[:40]!r}."
        )
    answers = tuple(_answer_text(item, answer_field, where) for item in value)
    return answer_texts([], answer_field, where) if not any(answers) else answers


def _answer_text(item: Any, answer_field: str, where: str) -> str:
    if isinstance(item, Mapping):
        item = item.get(answer_field, item.get("answer"))
    if not isinstance(item, str):
        raise DatasetError(f"{where}: an answer must be text, not {str(item)[:40]!r}.")
    if len(item) > MAX_TEXT:
        raise DatasetError(f"{where}: an answer has {len(item):,} characters, and {MAX_TEXT:,} is the limit.")
    return item
