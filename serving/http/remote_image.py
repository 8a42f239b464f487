"""Fetches an image by https from a host that the operator allows.

The host's name is resolved once, every address must be public, and the connection goes to the address that was checked:
a name that resolves differently a moment later reaches nothing. Redirects are not followed and proxies not used.
"""

from __future__ import annotations

import http.client
import ipaddress
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

_CHUNK_BYTES = 1 << 16

Resolve = Callable[[str], Sequence[str]]
OpenSocket = Callable[[str, float], socket.socket]  # (address, timeout in s)


class FetchError(Exception):
    """An image that was not fetched, and why, in words for the client."""


def resolve_host(host: str) -> Sequence[str]:
    """Returns the host's addresses. Raises OSError."""
    return [str(info[4][0]) for info in socket.getaddrinfo(host, 443, type=socket.SOCK_STREAM)]


def open_socket(address: str, timeout_s: float) -> socket.socket:
    """Connects to an address. Raises OSError."""
    return socket.create_connection((address, 443), timeout_s)


@dataclass(frozen=True)
class ImageFetcher:
    """Fetches images. Tests replace name resolution, connection and trusted certificates."""

    resolve: Resolve = resolve_host
    connect: OpenSocket = open_socket
    context: ssl.SSLContext = field(default_factory=ssl.create_default_context)

    def fetch(self, host: str, target: str, max_bytes: int, timeout_s: float) -> bytes:
        """Returns the body at https://HOST TARGET.

        Raises FetchError: an address that is not public, a status other than 200 (a redirect too), more than
        `max_bytes`, more than `timeout_s` in total (resolving the name is not interrupted), or a failed connection.
        """
        deadline_s = time.monotonic() + timeout_s
        try:
            address = self._public_address(host)
            with (
                self.connect(address, timeout_s) as plain,
                _ended_at(plain, deadline_s),
                self.context.wrap_socket(plain, server_hostname=host) as secure,
            ):
                return _body(secure, host, target, max_bytes, deadline_s)
        except (OSError, http.client.HTTPException, UnicodeError) as error:  # UnicodeError: a name that IDNA refuses
            if isinstance(error, TimeoutError) or time.monotonic() >= deadline_s:
                raise FetchError(f"it took more than {timeout_s:g} s") from error
            raise FetchError("the connection to its host failed") from error

    def _public_address(self, host: str) -> str:
        addresses = self.resolve(host)
        if not addresses or not all(ipaddress.ip_address(address).is_global for address in addresses):
            raise FetchError("its host has no public address")
        return addresses[0]


@contextmanager
def _ended_at(connected: socket.socket, deadline_s: float) -> Iterator[None]:
    """Ends the connection at the deadline: a host that sends one byte at a time never lets a read time out."""
    same = socket.socket(fileno=os.dup(connected.fileno()))  # `connected` itself is given up to TLS

    def end() -> None:
        with suppress(OSError):  # the host has closed it
            same.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(max(deadline_s - time.monotonic(), 0.0), end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        same.close()


def _body(secure: ssl.SSLSocket, host: str, target: str, max_bytes: int, deadline_s: float) -> bytes:
    connection = http.client.HTTPSConnection(host)
    connection.sock = secure
    headers = {"accept": "image/*", "accept-encoding": "identity", "user-agent": "knobctl", "connection": "close"}
    connection.request("GET", target, headers=headers)
    response = connection.getresponse()
    if response.status != 200:
        raise FetchError(f"its host replied with status {response.status}")
    body = bytearray()
    while True:
        chunk = response.read1(_CHUNK_BYTES)
        if time.monotonic() >= deadline_s:
            raise TimeoutError
        if not chunk:
            return bytes(body)
        body += chunk
        if len(body) > max_bytes:
            raise FetchError(f"it has more than {max_bytes:,} bytes")
