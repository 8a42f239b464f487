"""Untrusted text in messages: short, and without control characters."""

from __future__ import annotations


def printable(value: object, limit: int = 60) -> str:
    """Returns untrusted text as one short line that can be shown: no control characters, no lone surrogates."""
    text = value if isinstance(value, str) else repr(value)
    text = text[: limit + 1]
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    return text if len(text) <= limit else text[: limit - 3] + "..."
