"""Reads one large, untrusted JSON object row by row: memory is bounded by its largest value, not by the file size.

Parsing uses the decoder of the standard library, because it accepts the `NaN` literals that Python's own encoder writes
(orjson, msgspec and simdjson refuse the whole file), reports duplicate keys, and limits the nesting depth. It does
not interpret the rows.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import math
from collections.abc import Callable
from json.decoder import WHITESPACE  # type: ignore[attr-defined]  # the decoder's own definition of white space
from typing import Any, BinaryIO

from ..errors import ResultsError

CHUNK_BYTES = 1 << 20
MAX_FILE_BYTES = 4 << 30
MAX_VALUE_CHARS = 16 << 20  # of one row or header value; a real row of 64 tokens in 5 runs has 10,000
MAX_ROWS = 2_000_000
MAX_KEYS = 1_000
_MAX_INT_CHARS = 18  # sign included; fits int64
_AFTER_NUMBER = frozenset(",]} \t\r\n")


class DuplicateKeys(dict[str, Any]):
    """An object with a duplicate key, so that its value is ambiguous."""


class BrokenJson(ResultsError):
    """Not the JSON object expected: truncated, malformed, too deep or too large."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    return record if len(record) == len(pairs) else DuplicateKeys(record)


def _integer(text: str) -> int | float:
    """Returns infinity, which no field accepts, for integers beyond int64: parsing unbounded digits takes long."""
    return int(text) if len(text) <= _MAX_INT_CHARS else math.copysign(math.inf, -1 if text[0] == "-" else 1)


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer)


class ObjectStream:
    """One pass over a file that contains one JSON object."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self._digest = hashlib.sha256()
        self._text = ""
        self._place = 0
        self._ended = False
        self.bytes_read = 0

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def read(self, rows_key: str, on_row: Callable[[int, Any], None]) -> dict[str, Any]:
        """Returns the object without `rows_key`, whose elements are passed to `on_row(index, element)` one by one.

        Raises BrokenJson with the reason for anything but one complete object. Rows before the damage have already been
        passed to `on_row`; the caller discards them.
        """
        try:
            return self._read(rows_key, on_row)
        except UnicodeDecodeError as cause:
            raise BrokenJson(f"not UTF-8 text ({cause.reason})") from cause
        except RecursionError as cause:
            raise BrokenJson("nested too deeply") from cause

    def _read(self, rows_key: str, on_row: Callable[[int, Any], None]) -> dict[str, Any]:
        record: dict[str, Any] = {}
        found_rows = False
        if self._next() == "":
            raise BrokenJson("empty file")
        self._expect("{")
        more = self._next() != "}"
        while more:
            key = self._value()
            if not isinstance(key, str):
                raise BrokenJson(f"a key of the object is not a string, {self._where()}")
            if key in record or (key == rows_key and found_rows):
                raise BrokenJson(f"duplicate key {key[:40]!r}")
            self._expect(":")
            if key == rows_key and self._next() == "[":
                found_rows = True
                self._rows(on_row)
            else:
                record[key] = self._value()
            if len(record) > MAX_KEYS:
                raise BrokenJson(f"more than {MAX_KEYS:,} keys")
            more = self._next() == ","
            if more:
                self._expect(",")
        self._expect("}")
        if self._next() != "":
            raise BrokenJson(f"more text after the object's end, {self._where()}")
        if not found_rows:
            record.setdefault(rows_key, None)
        return record

    def _rows(self, on_row: Callable[[int, Any], None]) -> None:
        self._expect("[")
        more = self._next() != "]"
        count = 0
        while more:
            if count >= MAX_ROWS:
                raise BrokenJson(f"more than {MAX_ROWS:,} rows")
            on_row(count, self._value())
            count += 1
            more = self._next() == ","
            if more:
                self._expect(",")
        self._expect("]")

    def _value(self) -> Any:
        """Returns the next value, reading more of the file until it is complete."""
        self._next()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._place)
            except json.JSONDecodeError as cause:
                if not self._more():
                    short = cause.pos >= len(self._text) or cause.msg.startswith("Unterminated")
                    what = "cut off" if short else f"not JSON ({cause.msg})"
                    raise BrokenJson(f"{what}, {self._where()}") from cause
                continue
            if isinstance(value, int | float) and self._text[end : end + 1] not in _AFTER_NUMBER and self._more():
                continue  # the text read so far ends inside a number: `1`, `1.` or `1e` of `1.5e3`
            self._place = end
            return value

    def _next(self) -> str:
        """Returns the next character that is not white space, without consuming it; "" at the end of the file."""
        while True:
            self._place = WHITESPACE.match(self._text, self._place).end()
            if self._place < len(self._text):
                return self._text[self._place]
            if not self._more():
                return ""

    def _expect(self, character: str) -> None:
        found = self._next()
        if found != character:
            what = "cut off" if found == "" else f"not JSON (expected {character!r})"
            raise BrokenJson(f"{what}, {self._where()}")
        self._place += 1

    def _more(self) -> bool:
        """Reads at least as much as is unread, so that rescanning a long value takes linear time; False at the end."""
        if self._ended:
            return False
        unread = len(self._text) - self._place
        if unread > MAX_VALUE_CHARS:
            raise BrokenJson(f"not JSON, or one value of more than {MAX_VALUE_CHARS:,} characters, {self._where()}")
        data = self._file.read(max(CHUNK_BYTES, unread))
        self.bytes_read += len(data)
        if self.bytes_read > MAX_FILE_BYTES:
            raise BrokenJson(f"larger than {MAX_FILE_BYTES >> 30} GiB")
        self._digest.update(data)
        self._ended = not data
        self._text = self._text[self._place :] + self._decode(data, final=self._ended)
        self._place = 0
        return True

    def _where(self) -> str:
        return f"near byte {self.bytes_read:,}" if not self._ended else f"after {self.bytes_read:,} bytes"
