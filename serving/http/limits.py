"""Bounds on what a client may send, and on how long it may take."""

from __future__ import annotations

import asyncio

from fastapi import Request
from starlette.requests import ClientDisconnect

from .config import Limits
from .refusal import Refusal

_DISCARDED_BYTES = 256 << 20  # of a refused request's body: a client that is still sending may not read the reply


async def read_body(request: Request, limits: Limits) -> bytes:
    """Returns the request's body. Holds at most `body_bytes` of it, whatever the headers announce.

    Raises Refusal with 413 for one that is too large and with 408 for one that takes too long; ClientDisconnect.
    """
    if int(request.headers.get("content-length", 0)) > limits.body_bytes:  # the HTTP parser accepts digits only
        raise _too_large(limits)
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_s):
            while not getattr(request.state, "body_ended", False):
                body += await _next_chunk(request)
                if len(body) > limits.body_bytes:
                    raise _too_large(limits)
    except TimeoutError as error:
        request.state.body_ended = True  # nothing more is read
        raise Refusal(
            408,
            f"the request's body took more than {limits.body_s:g} s: send it faster.",
            code="request_timeout",
            headers={"connection": "close"},
        ) from error
    return bytes(body)


async def discard_body(request: Request, limits: Limits) -> None:
    """Reads the rest of a refused request's body, up to a bound, and keeps nothing.

    A client that waits for permission to send its body (`Expect: 100-continue`) is not asked for it.
    """
    discarded = 0
    if "expect" in request.headers and not getattr(request.state, "body_started", False):
        return
    try:
        async with asyncio.timeout(limits.body_s):
            while not getattr(request.state, "body_ended", False) and discarded < _DISCARDED_BYTES:
                discarded += len(await _next_chunk(request))
    except (TimeoutError, ClientDisconnect):
        return


async def wait_until_gone(request: Request) -> None:
    """Returns when the client has closed the connection. The body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _next_chunk(request: Request) -> bytes:
    request.state.body_started = True
    message = await request.receive()
    if message["type"] == "http.disconnect":
        request.state.body_ended = True
        raise ClientDisconnect
    if not message.get("more_body", False):
        request.state.body_ended = True
    chunk: bytes = message.get("body", b"")
    return chunk


def _too_large(limits: Limits) -> Refusal:
    return Refusal(
        413,
        f"the request's body has more than {limits.body_bytes:,} bytes: send a smaller image.",
        code="body_too_large",
        headers={"connection": "close"},
    )
