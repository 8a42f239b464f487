"""Reads JSON written by strangers: bounded size and depth, no key twice, no NaN. Knows nothing of what it means."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import CacheError, KnobctlError

MAX_BYTES = 64 * 2**20
MAX_DEPTH = 32


def read_json(
    path: Path, *, error: type[KnobctlError] = CacheError, max_bytes: int = MAX_BYTES, max_depth: int = MAX_DEPTH
) -> Any:
    """Returns what `path` holds. Raises `error`, naming the file and the place, for anything but plain, finite JSON."""
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as cause:
        raise error(f"{path} cannot be read: {cause.strerror or cause}") from cause
    if len(data) > max_bytes:
        raise error(f"{path} is larger than {max_bytes:,} bytes, more than such a file ever needs")
    return parse_json(data, str(path), error=error, max_depth=max_depth)


def parse_json(data: bytes, where: str, *, error: type[KnobctlError] = CacheError, max_depth: int = MAX_DEPTH) -> Any:
    """Returns what `data` holds, with or without a byte order mark; `where` names its origin in messages."""

    def constant(text: str) -> Any:
        raise error(f"{where} holds {text}, which is not JSON: a missing number is null")

    def number(text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            raise error(f"{where} holds the number {text[:40]}, too large for float64")
        return value

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        record = dict(items)
        if len(record) != len(items):
            keys = [key for key, _ in items]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise error(f"{where} holds the key {twice!r} twice in one object")
        return record

    try:
        value = json.loads(
            data.decode("utf-8-sig"), parse_constant=constant, parse_float=number, object_pairs_hook=pairs
        )
    except (
        UnicodeDecodeError,
        ValueError,
    ) as cause:  # JSONDecodeError is a ValueError; so are integers of 5,000 digits
        raise error(f"{where} is not JSON: {cause}") from cause
    except RecursionError as cause:
        raise error(f"{where} is nested deeper than {max_depth} levels") from cause
    if _deeper_than(value, max_depth):
        raise error(f"{where} is nested deeper than {max_depth} levels")
    return value


def _deeper_than(value: Any, depth: int) -> bool:
    level: list[Any] = [value]
    for _ in range(depth):
        level = [child for item in level for child in _children(item)]
        if not level:
            return False
    return True


def _children(item: Any) -> Iterable[Any]:
    if isinstance(item, dict):
        return item.values()
    return item if isinstance(item, list) else ()


def dump_json(value: Any) -> bytes:
    """Returns `value` as the project writes JSON: UTF-8, indented, no NaN, one newline at the end."""
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")
