"""Chat requests for tests of the server, and a client that needs no socket."""

from __future__ import annotations

import base64
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from PIL import Image

from knobctl.serving.answer import Engine
from knobctl.serving.http.app import ChatServer
from knobctl.serving.http.config import ServerConfig


def png(width: int = 8, height: int = 6, colour: tuple[int, int, int] = (200, 30, 40)) -> bytes:
    """Returns an image of one colour."""
    file = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(file, "PNG")
    return file.getvalue()


def data_uri(image: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(image).decode()


def messages(question: str = "What shape is it?", image: bytes | None = None, url: str | None = None) -> list[Any]:
    """Returns the messages of a request."""
    location = url if url is not None else data_uri(png() if image is None else image)
    image_part = {"type": "image_url", "image_url": {"url": location}}
    return [{"role": "user", "content": [{"type": "text", "text": question}, image_part]}]


def chat_body(question: str = "What shape is it?", **fields: Any) -> dict[str, Any]:
    """Returns the body of a request with a budget of 50 ms, unless `fields` has another one."""
    return {"model": "fake", "messages": messages(question), "budget_ms": 50, **fields}


@asynccontextmanager
async def running_app(engine: Engine, **options: Any) -> AsyncIterator[tuple[ChatServer, httpx.AsyncClient]]:
    """Runs the application in this process, and yields it with a client. Its clock stands still: no time is queued."""
    server = ChatServer(engine, ServerConfig(**options), clock=lambda: 0.0)
    transport = httpx.ASGITransport(server.app)
    async with (
        server.app.router.lifespan_context(server.app),
        httpx.AsyncClient(transport=transport, base_url="http://server", timeout=30) as client,
    ):
        yield server, client
