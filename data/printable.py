"""Untrusted text in messages: shortened, without control characters."""

from __future__ import annotations


def printable(value: object, limit: int = 60) -> str:
    """Returns text, or the repr of another value, as one line of at most `limit` characters that is safe to print.

    Control characters and lone surrogates are escaped.
    """
    text = value if isinstance(value, str) else repr(value)
    text = text[: limit + 1]
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    return text if len(text) <= limit else text[: limit - 3] + "..."
