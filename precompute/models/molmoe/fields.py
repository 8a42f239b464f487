"""Reads a checkpoint's untrusted JSON files: bounded, typed, with the field named in every error."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ....data.errors import CheckpointError
from ....data.files.bounded_json import read_json

MISSING = object()
_MAX_CONFIG_BYTES = 1 << 20


def read_json_object(path: Path, *, max_bytes: int = _MAX_CONFIG_BYTES) -> dict[str, Any]:
    """Reads a JSON file that holds one object.

    Raises:
        CheckpointError: the file is absent, larger than `max_bytes`, not JSON, or not an object.
    """
    if not path.exists():
        raise CheckpointError(f"{path} does not exist: a checkpoint directory needs it.")
    content = read_json(path, error=CheckpointError, max_bytes=max_bytes)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a JSON {type(content).__name__}, not an object.")
    return content


class FieldReader:
    """Reads fields of a mapping by name and type, and can refuse those that were not read.

    Every method raises CheckpointError, naming source and field, for a missing field or one of another type.
    """

    def __init__(self, fields: Mapping[str, Any], source: str) -> None:
        self._fields = fields
        self._source = source
        self._seen: set[str] = set()

    def fail(self, name: str, problem: str) -> CheckpointError:
        return CheckpointError(f"{self._source}: field {name!r} {problem}")

    def _take(self, name: str, default: Any = MISSING) -> Any:
        self._seen.add(name)
        value = self._fields.get(name, default)
        if value is MISSING:
            raise self.fail(name, "is missing.")
        return value

    def require(self, name: str, allowed: tuple[Any, ...], default: Any) -> None:
        value = self._take(name, default)
        if not any(type(value) is type(option) and value == option for option in allowed):
            wanted = " or ".join(map(repr, allowed))
            raise self.fail(name, f"is {value!r}, which is not supported: only {wanted} is.")

    def integer(self, name: str, *, minimum: int = 1) -> int:
        value = self._take(name)
        if type(value) is not int or value < minimum:
            raise self.fail(name, f"is {value!r}, not an integer of at least {minimum}.")
        return value

    def optional_integer(self, name: str) -> int | None:
        return None if self._take(name, None) is None else self.integer(name)

    def number(self, name: str) -> float:
        value = self._take(name)
        if type(value) not in (int, float) or not 0 < value < float("inf"):
            raise self.fail(name, f"is {value!r}, not a positive number.")
        return float(value)

    def boolean(self, name: str) -> bool:
        value = self._take(name)
        if type(value) is not bool:
            raise self.fail(name, f"is {value!r}, not true or false.")
        return value

    def integers(self, name: str) -> tuple[int, ...]:
        value = self._take(name)
        if not isinstance(value, list | tuple) or not value or any(type(item) is not int for item in value):
            raise self.fail(name, f"is {value!r}, not a list of integers.")
        return tuple(value)

    def margins(self, name: str) -> tuple[int, int]:
        value = self.integers(name)
        if len(value) != 2 or min(value) < 0:
            raise self.fail(name, f"is {value!r}, not two numbers of patches.")
        return value[0], value[1]

    def mapping(self, name: str) -> Mapping[str, Any]:
        value = self._take(name)
        if not isinstance(value, Mapping):
            raise self.fail(name, f"is {value!r}, not an object.")
        return value

    def refuse_the_rest(self, ignored: frozenset[str]) -> None:
        """Fails if a field was neither read nor is in `ignored`. Names with a leading underscore belong to the hub."""
        for name in sorted(set(self._fields) - self._seen - ignored):
            if not name.startswith("_"):
                raise self.fail(name, "is unknown, so its effect cannot be reproduced.")
