"""The routes, and the life of a chat request."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ... import __version__
from ...data.errors import BudgetUnmet, KnobctlError
from ..answer import Engine
from .budget import request_budget_ms
from .chat import ChatRequest, check_question, chosen_task, parse_chat
from .completion import DONE, Completion, event, report_headers
from .config import ServerConfig
from .image_source import image_of
from .limits import discard_body, read_body, wait_until_gone
from .metrics import Metrics
from .refusal import Refusal, budget_unmet, error_body
from .remote_image import ImageFetcher
from .request_queue import QueuedRequest, RequestQueue, Served, Ticket
from .security import check_key

_IMAGE_THREADS = 4  # that decode base64 and fetch images
_GONE = 499  # status of a request whose client is gone, as nginx logs it


class ChatServer:
    """Serves one engine. `app` is the ASGI application; its lifespan runs the queue."""

    def __init__(
        self,
        engine: Engine,
        config: ServerConfig,
        *,
        fetcher: ImageFetcher | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.engine, self.config = engine, config
        self.queue = RequestQueue(engine, config.max_queue, config.on_miss, clock)
        self.metrics = Metrics()
        self.metrics.open_requests.set_function(lambda: self.queue.open_requests)
        self._fetcher = fetcher or ImageFetcher()
        self._image_threads = ThreadPoolExecutor(_IMAGE_THREADS, "image")
        self.app = self._make_app()

    def _make_app(self) -> FastAPI:
        app = FastAPI(
            title="knobctl",
            version=__version__,
            openapi_url=None,
            docs_url=None,
            redoc_url=None,
            lifespan=self._lifespan,
        )
        app.add_exception_handler(Refusal, self._refuse)
        app.add_exception_handler(HTTPException, self._refuse_route)
        app.add_exception_handler(Exception, self._fail)
        app.add_api_route("/health", self._health, methods=["GET"])
        router = APIRouter(dependencies=[Depends(self._require_key)])
        router.add_api_route("/v1/models", self._models, methods=["GET"])
        router.add_api_route("/metrics", self._metrics, methods=["GET"], response_class=Response)
        router.add_api_route("/openapi.json", self._openapi, methods=["GET"])
        router.add_api_route(
            _CHAT_PATH, self._chat, methods=["POST"], response_class=Response, openapi_extra=_CHAT_BODY
        )
        app.include_router(router)
        return app

    @contextlib.asynccontextmanager
    async def _lifespan(self, _app: FastAPI) -> AsyncIterator[None]:
        running = asyncio.create_task(self.queue.run())
        try:
            yield
        finally:
            running.cancel()
            self.queue.close()
            self._image_threads.shutdown(wait=False)

    async def _require_key(self, request: Request) -> None:
        check_key(request.headers, self.config.api_key)

    async def _health(self) -> JSONResponse:
        """Ready, or draining with status 503."""
        draining = self.queue.draining
        return JSONResponse({"status": "draining" if draining else "ready"}, 503 if draining else 200)

    async def _models(self) -> dict[str, Any]:
        """The model, with the tasks that a request may name."""
        model = {"id": self.engine.model_name, "object": "model", "created": 0, "owned_by": "knobctl"}
        return {"object": "list", "data": [{**model, "tasks": sorted(self.engine.tasks)}]}

    async def _metrics(self) -> Response:
        """Prometheus metrics."""
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def _openapi(self, request: Request) -> dict[str, Any]:
        """This schema."""
        schema = get_openapi(title="knobctl", version=__version__, routes=request.app.routes)
        _, models = models_json_schema([(ChatRequest, "validation")], ref_template="#/components/schemas/{model}")
        schema.setdefault("components", {}).setdefault("schemas", {}).update(models["$defs"])
        return schema

    async def _chat(self, request: Request) -> Response:
        """Answers one question about one image within a latency budget."""
        try:
            chat, ticket = await self._admit(request)
        except ClientDisconnect:
            self.metrics.count("client_gone")
            return Response(status_code=_GONE)
        completion = Completion(self.engine.model_name)
        gone = asyncio.create_task(wait_until_gone(request))
        try:
            if chat.stream:
                first = await self._unless_gone(ticket, ticket.pieces.get(), gone)
                if first is None:  # no text, or an error, which still gets its status
                    await self._unless_gone(ticket, ticket.result, gone)
                events = self._events(ticket, completion, first, chat.include_usage)
                return StreamingResponse(events, media_type="text/event-stream", headers=_NO_CACHE)
            served = await self._unless_gone(ticket, ticket.result, gone)
            return JSONResponse(completion.whole(served), headers=report_headers(served))
        except ClientDisconnect:
            return Response(status_code=_GONE)
        finally:
            gone.cancel()

    async def _admit(self, request: Request) -> tuple[ChatRequest, Ticket]:
        """Reads, checks and queues a request."""
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Refusal(415, "the body must be JSON: send the header content-type: application/json.")
        self.queue.enter()
        ticket = None
        try:
            chat, queued = await self._read(request)
            ticket = self.queue.submit(queued)
        finally:
            if ticket is None:
                self.queue.leave()
        request.state.queued = True
        ticket.result.add_done_callback(self._count)
        return chat, ticket

    async def _read(self, request: Request) -> tuple[ChatRequest, QueuedRequest]:
        """Reads and checks a request. Its time begins when it has arrived completely."""
        limits = self.config.limits
        body = await read_body(request, limits)
        arrived_s = self.queue.clock()
        chat = parse_chat(body)
        task = chosen_task(chat, self.engine.model_name, self.engine.tasks)
        check_question(chat.message.question, limits.question_chars)
        most_tokens = min(self.engine.tasks[task], chat.token_limit or self.engine.tasks[task])
        budget_ms = request_budget_ms(request.headers, chat.budget_ms, self.config.default_budget_ms, most_tokens)
        image = await asyncio.get_running_loop().run_in_executor(
            self._image_threads,
            image_of,
            chat.message.image_url,
            limits,
            self.config.allowed_image_hosts,
            self._fetcher,
        )
        return chat, QueuedRequest(
            image, chat.message.question, budget_ms, task, chat.token_limit, arrived_s, bool(chat.stream)
        )

    async def _unless_gone(self, ticket: Ticket, awaited: Awaitable[Any], gone: asyncio.Task[None]) -> Any:
        """Returns the awaited value; an error of the engine becomes a Refusal. Raises ClientDisconnect."""
        waiting = asyncio.ensure_future(awaited)
        await asyncio.wait({waiting, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            waiting.cancel()
            self.queue.cancel(ticket)
            raise ClientDisconnect
        try:
            return waiting.result()
        except KnobctlError as error:
            raise _as_refusal(error) from error

    async def _events(
        self, ticket: Ticket, completion: Completion, first: str | None, include_usage: bool
    ) -> AsyncIterator[str]:
        """Yields the events of a stream."""
        try:
            yield completion.first()
            piece = first
            while piece is not None:
                yield completion.piece(piece)
                piece = await ticket.pieces.get()
            error = ticket.result.exception()
            if error is None:
                yield completion.last(ticket.result.result(), include_usage) + DONE
            else:
                _log.error("a stream failed", exc_info=error)
                yield event(error_body(500, _FAILED))
        finally:
            self.queue.cancel(ticket)

    def _count(self, result: asyncio.Future[Served]) -> None:
        """Counts the outcome of a request that was queued; `_refuse` counts the others."""
        error = None if result.cancelled() else result.exception()
        if result.cancelled():
            self.metrics.count("client_gone")
        elif error is None:
            self.metrics.record(result.result())
        else:
            self.metrics.count(_as_refusal(error).outcome if isinstance(error, (Refusal, KnobctlError)) else "failed")

    async def _refuse(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, Refusal)
        if request.url.path == _CHAT_PATH and not getattr(request.state, "queued", False):
            self.metrics.count(error.outcome)
        await discard_body(request, self.config.limits)
        return JSONResponse(error.body, error.status, error.headers)

    async def _refuse_route(self, request: Request, error: Exception) -> Response:
        """Replies to an unknown path or method."""
        assert isinstance(error, HTTPException)
        await discard_body(request, self.config.limits)
        return JSONResponse(error_body(error.status_code, error.detail), error.status_code, error.headers)

    async def _fail(self, request: Request, _error: Exception) -> Response:
        """Replies to a request that an unexpected error ended; the server's log has the error."""
        if request.url.path == _CHAT_PATH and not getattr(request.state, "queued", False):
            self.metrics.count("failed")
        return JSONResponse(error_body(500, _FAILED), 500)


def _as_refusal(error: Refusal | KnobctlError) -> Refusal:
    """Returns the refusal that an error of the queue or the engine stands for."""
    if isinstance(error, Refusal):
        return error
    return budget_unmet(str(error)) if isinstance(error, BudgetUnmet) else Refusal(400, str(error))


_log = logging.getLogger("uvicorn.error")  # the server's log, on stderr
_FAILED = "the request failed for a reason that is in the server's log."
_CHAT_PATH = "/v1/chat/completions"
_NO_CACHE = {"cache-control": "no-cache"}
_CHAT_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ChatRequest"}}},
    }
}
