"""Runs the application: slow clients, signals, draining."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from types import FrameType

import uvicorn
from uvicorn.config import LOGGING_CONFIG
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..answer import Engine
from .app import ChatServer
from .config import ServerConfig

_MAX_HEADER_BYTES = 32 << 10
_MAX_CONNECTIONS = 512
_CLOSE_S = 5  # for sending the last replies
_POLL_S = 0.05


def serve(engine: Engine, config: ServerConfig, started: Callable[[str], None] = lambda _url: None) -> None:
    """Serves the engine until SIGTERM or SIGINT.

    The first signal drains: requests in the queue are finished, for at most `drain_s`, and new ones get 503. The second
    one ends the server at once.

    Args:
        started: receives the server's URL as soon as it accepts requests.
    """
    chat_server = ChatServer(engine, config)
    uvicorn_config = uvicorn.Config(
        chat_server.app,
        host=config.host,
        port=config.port,
        http=_protocol(config.limits.header_s),
        ws="none",
        log_config=_log_config(),
        server_header=False,
        proxy_headers=False,
        limit_concurrency=_MAX_CONNECTIONS,
        h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
        timeout_graceful_shutdown=_CLOSE_S,
    )
    _DrainingServer(uvicorn_config, chat_server, started).run()


class _DrainingServer(uvicorn.Server):
    """Drains the queue at the first signal, while it still accepts connections."""

    def __init__(self, config: uvicorn.Config, chat_server: ChatServer, started: Callable[[str], None]) -> None:
        super().__init__(config)
        self._chat_server, self._started = chat_server, started
        self._drain_until_s: float | None = None

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        await super().startup(sockets)  # type: ignore[arg-type]
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            self._started(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._chat_server.queue.draining:
            self.force_exit = True
            super().handle_exit(sig, frame)
        self._chat_server.queue.draining = True

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second."""
        queue = self._chat_server.queue
        if queue.draining and not self.should_exit:
            now_s = asyncio.get_running_loop().time()
            if self._drain_until_s is None:
                self._drain_until_s = now_s + self._chat_server.config.drain_s
            if now_s >= self._drain_until_s:
                queue.abandon()
                self.should_exit = True
            self.should_exit = self.should_exit or queue.open_requests == 0
        return await super().on_tick(counter)


def _protocol(header_s: float) -> type[H11Protocol]:
    """Returns uvicorn's protocol, which closes a connection that does not complete its headers in time."""

    class TimedProtocol(H11Protocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._start()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                self._stop()
            elif self._timer is None:
                self._start()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop()
            super().connection_lost(exc)

        def _start(self) -> None:
            self._timer = self.loop.call_later(header_s, self.transport.close)

        def _stop(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    return TimedProtocol


def _log_config() -> dict[str, object]:
    """Returns uvicorn's logging with everything on stderr: stdout is for results."""
    log_config: dict[str, object] = copy.deepcopy(LOGGING_CONFIG)
    log_config["handlers"]["access"]["stream"] = "ext://sys.stderr"  # type: ignore[index]
    return log_config
