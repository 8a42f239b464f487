"""Turns tokens into pieces of text as they come; the pieces join to the whole answer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # the last character may need more tokens


class TextStream:
    """Sends text as soon as later tokens cannot change it.

    Args:
        decode: the text of tokens.
        send: receives pieces that are not empty.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], end_ids: Collection[int], send: Callable[[str], None]
    ) -> None:
        self._decode, self._end_ids, self._send = decode, end_ids, send
        self._tokens: list[int] = []
        self._sent = ""

    def add(self, token: int) -> None:
        """Receives one token."""
        self._tokens.append(token)
        if token not in self._end_ids:
            self._send_up_to(self._decode(self._tokens).rstrip(_INCOMPLETE))

    def finish(self, text: str) -> None:
        """Sends what is missing of the whole text."""
        assert text.startswith(self._sent), "a tokenizer's text of more tokens begins with that of fewer"
        self._send_up_to(text)

    def _send_up_to(self, text: str) -> None:
        if text.startswith(self._sent) and len(text) > len(self._sent):
            piece, self._sent = text[len(self._sent) :], text
            self._send(piece)
