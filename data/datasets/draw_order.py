"""The order in which rows are drawn: by seeded hash of the question, so a sample of N is part of every larger one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def draw_order(dataset: str, question_ids: Sequence[str], seed: int) -> list[int]:
    """Returns the row indices in drawing order: the first N are the sample of size N."""

    def key(row: int) -> tuple[bytes, int]:
        text = f"{seed}/{dataset}/{question_ids[row]}"
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest(), row

    return sorted(range(len(question_ids)), key=key)
