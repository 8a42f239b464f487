"""The share of a run's samples that a directory contains."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import CacheError


@dataclass(frozen=True)
class Shard:
    """One of `count` shares of the samples; `0/1` is all of them. Raises CacheError if the index is out of range."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise CacheError(f"shard {self.index}/{self.count}: the index runs from 0 to {self.count - 1}")

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"
