"""Who may use the server: the API key, and the addresses it may listen on."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ...data.errors import KnobctlError
from .refusal import Refusal

if TYPE_CHECKING:  # a library of the extra
    from starlette.datastructures import Headers

KEY_VARIABLE = "KNOBCTL_API_KEY"
_MAX_KEY_BYTES = 4096


def read_api_key(path: Path | None, environment: Mapping[str, str] = os.environ) -> str | None:
    """Returns the key: the file's first line if a file is given, else the environment's, else None.

    Raises KnobctlError for a file that cannot be read, and for an empty or unprintable key.
    """
    if path is None:
        if KEY_VARIABLE not in environment:
            return None
        source, key = f"the environment variable {KEY_VARIABLE}", environment[KEY_VARIABLE]
    else:
        source = str(path)
        try:
            with path.open("rb") as file:
                lines = file.read(_MAX_KEY_BYTES).decode("ascii").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise KnobctlError(f"the API key in {path} cannot be read ({error}): write one line of ASCII.") from error
        key = lines[0] if lines else ""
    if not (key.isascii() and key.isprintable() and key.strip() == key and key):
        raise KnobctlError(f"the API key in {source} is empty or has blanks or control characters: choose another one.")
    return key


def check_host(host: str, api_key: str | None) -> None:
    """Raises KnobctlError for a host that other machines can reach, unless there is a key."""
    if api_key is None and not _is_loopback(host):
        raise KnobctlError(
            f"other machines may reach the host {host}, which needs an API key: set {KEY_VARIABLE} or name a key file, "
            "or listen on 127.0.0.1."
        )


def check_key(headers: Headers, api_key: str | None) -> None:
    """Raises Refusal with 401 unless the request has the key as its bearer token. Takes the same time for any key."""
    if api_key is None:
        return
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if not (_same(token.strip(), api_key) and scheme.lower() == "bearer"):
        raise Refusal(
            401,
            "the API key is missing or wrong: send the header Authorization: Bearer KEY.",
            code="invalid_api_key",
            outcome="unauthorized",
            headers={"www-authenticate": "Bearer"},
        )


def _same(token: str, api_key: str) -> bool:
    """Compares digests, whose length is the same for any key, in constant time."""
    digests = (hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest() for text in (token, api_key))
    return hmac.compare_digest(*digests)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return False
