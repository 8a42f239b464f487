"""The encoded image of a request: from its data URI, or fetched from a host that the server allows."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import urlsplit

from ...data.datasets.images import image_size
from ...data.errors import DatasetError
from .config import Limits
from .refusal import Refusal
from .remote_image import FetchError, ImageFetcher

PARAM = "messages[0].content"
_DATA_URI = re.compile(r"data:image/[a-zA-Z0-9.+-]{1,40};base64,")
_NAME = "of the request"


@dataclass(frozen=True)
class RequestImage:
    """An image whose header has been checked."""

    data: bytes
    size: tuple[int, int]  # width, height


def image_of(url: str, limits: Limits, allowed_hosts: Collection[str], fetcher: ImageFetcher) -> RequestImage:
    """Returns the image at `url`. Blocks while it is fetched.

    Raises Refusal: a path or another kind of URL, a host that is not allowed, an image that cannot be fetched, is not
    an image, or exceeds the limits. Its pixels are counted from the header, before anything is decoded.
    """
    if match := _DATA_URI.match(url):
        data = _decoded(url[match.end() :], limits.image_bytes)
    else:
        data = _fetched(url, limits, allowed_hosts, fetcher)
    try:
        return RequestImage(data, image_size(data, _NAME))
    except DatasetError as error:
        raise _refusal(str(error)) from error


def _decoded(text: str, max_bytes: int) -> bytes:
    if len(text) // 4 * 3 > max_bytes + 2:  # before anything is allocated; padding stands for up to two bytes
        raise _too_large(max_bytes)
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:  # ValueError: characters outside ASCII
        raise _refusal("the image's data URI is not valid base64.") from error
    if len(data) > max_bytes:
        raise _too_large(max_bytes)
    return data


def _fetched(url: str, limits: Limits, allowed_hosts: Collection[str], fetcher: ImageFetcher) -> bytes:
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError as error:
        raise _refusal("the image's URL cannot be parsed: send data:image/...;base64,...") from error
    if parts.scheme != "https":
        raise _refusal("an image must be a data URI (data:image/...;base64,...) or, if the server allows it, https://.")
    if host not in allowed_hosts or port not in (None, 443) or parts.username or parts.password:
        raise _refusal("images are not fetched from this address: send data:image/...;base64,...", "host_not_allowed")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if not re.fullmatch(r"[!-~]+", target):
        raise _refusal("the image's URL has characters that must be percent-encoded.")
    try:
        return fetcher.fetch(host, target, limits.image_bytes, limits.fetch_s)
    except FetchError as error:
        raise _refusal(f"the image cannot be fetched: {error}.", "image_not_fetched") from error


def _too_large(max_bytes: int) -> Refusal:
    return _refusal(f"the image has more than {max_bytes:,} bytes: make it smaller.", "image_too_large")


def _refusal(message: str, code: str = "invalid_image") -> Refusal:
    return Refusal(400, message, param=PARAM, code=code)
