"""The options of a server."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...data.errors import KnobctlError
from ..answer import OnMiss
from .budget import MAX_BUDGET_MS, MIN_BUDGET_MS, check_budget_ms
from .limits import Limits
from .security import check_host


@dataclass(frozen=True)
class ServerConfig:
    """The options of a server. Raises KnobctlError for a host that needs a key, and for values out of range."""

    host: str = "127.0.0.1"
    port: int = 8000  # 0: any free one
    default_budget_ms: float | None = None  # of requests that name none; None: such requests are refused
    max_queue: int = 64  # requests that wait
    on_miss: OnMiss = "refuse"
    api_key: str | None = field(default=None, repr=False)
    allowed_image_hosts: frozenset[str] = frozenset()
    drain_s: float = 30.0  # for finishing the queue after SIGTERM
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        check_host(self.host, self.api_key)
        if self.default_budget_ms is not None and not check_budget_ms(self.default_budget_ms):
            raise KnobctlError(
                f"the default budget is {self.default_budget_ms:g} ms: it must be from {MIN_BUDGET_MS:g} to "
                f"{MAX_BUDGET_MS:.0f}."
            )
        for host in self.allowed_image_hosts:
            if not host or host != host.lower() or set(host) & set("/:@*?#"):
                raise KnobctlError(f"{host!r} is not the name of an image host in lower case, such as example.org.")
