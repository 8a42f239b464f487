"""The options of a server. Imports no library of the extra `serve`: the command's help needs them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from ...data.errors import KnobctlError
from ..answer import OnMiss
from .budget import MAX_BUDGET_MS, MIN_BUDGET_MS, check_budget_ms
from .security import check_host

_MIB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """What a client may send, in bytes, and how long it may take, in seconds."""

    body_bytes: int = 24 * _MIB  # an image in base64 takes four thirds of its size
    image_bytes: int = 16 * _MIB
    question_chars: int = 20_000
    header_s: float = 10.0  # from the connection, or the first byte of a later request, to the end of the headers
    body_s: float = 30.0  # from the headers to the end of the body
    fetch_s: float = 10.0  # of an image by URL


@dataclass(frozen=True)
class ServerConfig:
    """The options of a server.

    Raises KnobctlError for a host that needs an API key and for values out of range.
    """

    # Metadata describes the command-line options: see `commands/config_options.py`.
    host: str = field(
        default="127.0.0.1", metadata={"help": "Address to listen on. One that other machines reach needs an API key."}
    )
    port: int = field(default=8000, metadata={"help": "Port to listen on; 0: any free one."})
    default_budget_ms: float | None = field(
        default=None,
        metadata={"help": "Latency budget of requests that name none.  [default: such requests are refused]"},
    )
    max_queue: int = field(default=64, metadata={"help": "Requests that may wait; further ones are refused with 429."})
    on_miss: OnMiss = field(
        default="refuse",
        metadata={
            "help": "Requests whose budget no setting is expected to meet: refuse them with 429, or answer them with "
            "the fastest setting.",
            "choices": ("refuse", "fastest"),
        },
    )
    allowed_image_hosts: tuple[str, ...] = field(
        default=(),
        metadata={
            "help": "A host that images may be fetched from by https.  [default: none]",
            "option": "allow_image_host",
            "metavar": "HOST",
        },
    )
    drain_s: float = field(default=30.0, metadata={"help": "Seconds for finishing the queue after SIGTERM."})
    api_key: str | None = field(default=None, repr=False)
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        check_host(self.host, self.api_key)
        if not 0 <= self.port <= 65535:
            raise KnobctlError(f"port {self.port} does not exist: it must be from 0 to 65535.")
        if self.max_queue < 0:
            raise KnobctlError(f"a queue of {self.max_queue} requests is not possible: it must be 0 or more.")
        if not (self.drain_s >= 0 and math.isfinite(self.drain_s)):
            raise KnobctlError(f"draining for {self.drain_s:g} s is not possible: it must be 0 or more.")
        if self.default_budget_ms is not None and not check_budget_ms(self.default_budget_ms):
            raise KnobctlError(
                f"the default budget is {self.default_budget_ms:g} ms: it must be from {MIN_BUDGET_MS:g} to "
                f"{MAX_BUDGET_MS:.0f}."
            )
        for host in self.allowed_image_hosts:
            if not host or host != host.lower() or set(host) & set("/:@*?#"):
                raise KnobctlError(f"{host!r} is not the name of an image host in lower case, such as example.org.")
