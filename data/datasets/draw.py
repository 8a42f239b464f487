"""Which rows are drawn: by seeded hash of the question, so that a sample of N is part of every larger one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def draw_order(dataset: str, question_ids: Sequence[str], seed: int) -> list[int]:
    """Returns row indices in the order they are drawn in: the first N are the sample of size N."""

    def key(row: int) -> tuple[bytes, int]:
        text = f"{seed}/{dataset}/{question_ids[row]}"
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest(), row

    return sorted(range(len(question_ids)), key=key)
