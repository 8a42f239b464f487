"""Repeated rows: exact repeats are read once; one id with different contents is an error."""

from __future__ import annotations

import hashlib

from ..errors import DatasetError
from .records import Record, Rows


def unique_rows(rows: Rows) -> tuple[list[int], dict[int, DatasetError]]:
    """Returns the rows without exact repeats, and the rows that conflict with an earlier one or cannot be read.

    If the first row with an id cannot be read, the next row with this id replaces it.

    Returns:
        The kept row indices in ascending order, and the error of each bad row by its index.
    """
    first: dict[str, int] = {}
    bad: dict[int, DatasetError] = {}
    for row, question_id in enumerate(rows.question_ids):
        earlier = first.setdefault(question_id, row)
        if earlier == row:
            continue
        try:
            known = rows.record(earlier)
        except DatasetError as error:
            bad[earlier], first[question_id] = error, row
            continue
        try:
            record = rows.record(row)
            if not _same(known, record):
                raise DatasetError(
                    f"{rows.where(row)}: question_id {question_id} was already used at {rows.where(earlier)}, with "
                    "another question, image or answers: give each question its own id."
                )
        except DatasetError as error:
            bad[row] = error
    return sorted(first.values()), bad


def _same(one: Record, other: Record) -> bool:
    if (one.question, one.answers, one.image_id) != (other.question, other.answers, other.image_id):
        return False
    return one.image_id is not None or one.image.ref == other.image.ref or _digest(one) == _digest(other)


def _digest(record: Record) -> bytes:
    return hashlib.sha256(record.image.read_bytes()).digest()
