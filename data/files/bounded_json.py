"""Reads JSON from untrusted files: bounded size and depth, no duplicate keys, finite numbers only."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import KnobctlError

MAX_BYTES = 64 * 2**20
MAX_DEPTH = 32


def read_json(path: Path, error: type[KnobctlError], *, max_bytes: int = MAX_BYTES, max_depth: int = MAX_DEPTH) -> Any:
    """Returns the content of `path`. Raises `error`, naming file and problem, unless it is finite, bounded JSON."""
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as cause:
        raise error(f"{path} cannot be read: {cause.strerror or cause}") from cause
    if len(data) > max_bytes:
        raise error(f"{path} is larger than {max_bytes:,} bytes, the limit for a file of this kind")
    return parse_json(data, str(path), error, max_depth=max_depth)


def read_json_object(path: Path, error: type[KnobctlError], *, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """Returns the object in `path`. Raises `error` as `read_json` does, and when the content is not an object."""
    content = read_json(path, error, max_bytes=max_bytes)
    if not isinstance(content, dict):
        raise error(f"{path} holds a JSON {type(content).__name__}, not an object")
    return content


def parse_json(data: bytes, where: str, error: type[KnobctlError], *, max_depth: int = MAX_DEPTH) -> Any:
    """Returns the value of UTF-8 JSON, with or without a byte order mark; `where` names its origin in messages."""

    def constant(text: str) -> Any:
        raise error(f"{where} contains {text}, which is not JSON: write a missing number as null")

    def number(text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            raise error(f"{where} contains the number {text[:40]}, which is too large for float64")
        return value

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        record = dict(items)
        if len(record) != len(items):
            keys = [key for key, _ in items]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise error(f"{where} has the key {twice!r} twice in one object")
        return record

    try:
        value = json.loads(
            data.decode("utf-8-sig"), parse_constant=constant, parse_float=number, object_pairs_hook=pairs
        )
    except ValueError as cause:  # undecodable bytes, malformed JSON, or an integer of more digits than Python parses
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
    """Returns `value` as the project writes JSON: UTF-8, indented, one newline at the end. NaN raises ValueError."""
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")
