"""Reads the fields of an untrusted JSON object by name and type; errors name the file and the path of the field."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

from ..errors import KnobctlError
from ..printable import printable

T = TypeVar("T")

REQUIRED: Any = object()


class JsonFields:
    """The fields of one JSON object, each checked as it is read.

    Each reading method takes the field's name, returns its value and raises `error` when the field is missing, null or
    of another type. The message reads `cache.json: "model.d_model" must be a whole number, not '2048'`. A boolean is
    not a number, as in JSON.

    Args:
        record: The object; `error` is raised when it is not one.
        source: Where it comes from, such as a file's path.
        error: What every reading method raises.
        path: Place of the object in the source, empty or ending in a dot.
    """

    def __init__(self, record: object, source: str, error: type[KnobctlError], path: str = "") -> None:
        self._source = source
        self._error = error
        self._path = path
        self._read: set[str] = set()
        if not isinstance(record, Mapping):
            raise self.fail(None, f"must be an object, not {printable(repr(record))}")
        self._record = record

    def fail(self, name: str | None, problem: str) -> KnobctlError:
        """Returns the error for field `name`, or for the whole object; `problem` continues "FILE: "PATH" "."""
        path = self._path.removesuffix(".") if name is None else self._path + name
        return self._error(f'{self._source}: "{path}" {problem}' if path else f"{self._source} {problem}")

    def value(self, name: str, default: Any = REQUIRED) -> Any:
        """Returns the field as it is; `default` when it is missing."""
        self._read.add(name)
        value = self._record.get(name, default)
        if value is REQUIRED:
            raise self.fail(name, "is missing")
        return value

    def text(self, name: str) -> str:
        value = self.value(name)
        if not isinstance(value, str):
            raise self._mistyped(name, "a string", value)
        return value

    def boolean(self, name: str) -> bool:
        value = self.value(name)
        if not isinstance(value, bool):
            raise self._mistyped(name, "true or false", value)
        return value

    def integer(self, name: str, minimum: int | None = None, maximum: int | None = None) -> int:
        """Returns a whole number, `minimum` to `maximum` where they are given."""
        value = self.value(name)
        if (
            type(value) is not int
            or (minimum is not None and value < minimum)
            or (maximum is not None and value > maximum)
        ):
            lower = "" if minimum is None else f" of at least {minimum:,}"
            upper = "" if maximum is None else f"{' and' if lower else ' of'} at most {maximum:,}"
            raise self._mistyped(name, f"a whole number{lower}{upper}", value)
        return value

    def count(self, name: str) -> int:
        """Returns a whole number of at least 1."""
        return self.integer(name, minimum=1)

    def number(self, name: str) -> float:
        """Returns a finite number as a float."""
        value = self.value(name)
        if type(value) not in (int, float):
            raise self._mistyped(name, "a number", value)
        try:
            number = float(value)
        except OverflowError as cause:  # Python's whole numbers have no bound
            raise self.fail(name, f"is too large: {printable(repr(value))}") from cause
        if not math.isfinite(number):
            raise self._mistyped(name, "a finite number", value)
        return number

    def positive(self, name: str) -> float:
        """Returns a finite number above 0 as a float."""
        number = self.number(name)
        if number <= 0:
            raise self._mistyped(name, "a positive number", number)
        return number

    def record(self, name: str) -> dict[str, Any]:
        """Returns an object without looking into it."""
        value = self.value(name)
        if not isinstance(value, Mapping):
            raise self._mistyped(name, "an object", value)
        return dict(value)

    def fields(self, name: str) -> JsonFields:
        """Returns an object whose own fields are read with the same source and error."""
        return JsonFields(self.value(name), self._source, self._error, f"{self._path}{name}.")

    def each(self, name: str, read: Callable[[JsonFields, str], T]) -> list[T]:
        """Returns a list, its entries read by a method of this class: `fields.each("top_k", JsonFields.integer)`."""
        value = self.value(name)
        if not isinstance(value, list | tuple):
            raise self._mistyped(name, "a list", value)
        entries = {f"{name}[{index}]": entry for index, entry in enumerate(value)}
        reader = JsonFields(entries, self._source, self._error, self._path)
        return [read(reader, entry) for entry in entries]

    def optional(self, name: str, read: Callable[[JsonFields, str], T]) -> T | None:
        """Returns None when the field is missing or null, else what `read`, a method of this class, returns."""
        return None if self.value(name, None) is None else read(self, name)

    def one_of(self, name: str, allowed: Sequence[Any], default: Any = REQUIRED) -> Any:
        """Returns a value that equals one of `allowed` in value and type; `default` stands in for a missing field."""
        value = self.value(name, default)
        if not any(type(value) is type(option) and value == option for option in allowed):
            raise self.fail(name, f"is {printable(repr(value))}; supported: {', '.join(map(repr, allowed))}")
        return value

    def refuse_others(self, ignored: Collection[str]) -> None:
        """Raises for a field that was neither read nor is in `ignored`. Names that begin with `_` are never refused."""
        for name in sorted(self._record.keys() - self._read - set(ignored)):
            if not name.startswith("_"):
                raise self.fail(printable(name), "is not known to knobctl, which cannot reproduce its effect")

    def _mistyped(self, name: str, wanted: str, found: object) -> KnobctlError:
        return self.fail(name, f"must be {wanted}, not {printable(repr(found))}")
