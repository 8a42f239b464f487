"""Generated chat requests, valid and not: fields, types, headers and bytes."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

import httpx
from hypothesis import given, settings
from hypothesis import strategies as st

from knobctl.tests.support.chat_requests import chat_body, data_uri, png, running_app
from knobctl.tests.support.fake_engine import FakeEngine

URL = "/v1/chat/completions"
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
_IMAGE = png()
_URLS = (
    st.just(data_uri(_IMAGE))
    | st.binary(max_size=60).map(data_uri)
    | st.integers(1, len(_IMAGE)).map(lambda length: data_uri(_IMAGE[:length]))
    | st.tuples(st.integers(0, len(_IMAGE) - 1), st.integers(0, 255)).map(
        lambda change: data_uri(_IMAGE[: change[0]] + bytes([change[1]]) + _IMAGE[change[0] + 1 :])
    )
    | st.sampled_from(["/etc/passwd", "file:///x", "https://example.org/a", "http://127.0.0.1/", "https://[", "data:"])
    | st.text(max_size=30)
)
_PARTS = st.lists(
    st.one_of(
        _URLS.map(lambda url: {"type": "image_url", "image_url": {"url": url}}),
        st.text(max_size=30).map(lambda text: {"type": "text", "text": text}),
        _JSON,
    ),
    max_size=4,
)
_FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "model": st.just("fake") | _JSON,
    "messages": _PARTS.map(lambda content: [{"role": "user", "content": content}]) | _JSON,
    "budget_ms": st.floats() | st.integers(-5, 100) | _JSON,
    "stream": st.booleans() | _JSON,
    "stream_options": st.fixed_dictionaries({"include_usage": st.booleans()}) | _JSON,
    "max_tokens": st.integers(-3, 50) | _JSON,
    "max_completion_tokens": st.integers(1, 50) | _JSON,
    "temperature": st.sampled_from([0, 0.0, 1, None]) | _JSON,
    "n": st.sampled_from([1, 2]) | _JSON,
    "task": st.just("easy_vqa") | _JSON,
    "seed": _JSON,
    "tools": _JSON,
}
_HEADERS = st.dictionaries(
    st.sampled_from(["x-knobctl-budget-ms", "x-llm-d-slo-ttft-ms", "x-llm-d-slo-tpot-ms", "authorization", "expect"]),
    st.integers(-1, 300).map(str) | st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=12),
    max_size=2,
)


@dataclass(frozen=True)
class HostileRequest:
    """The bytes and headers of one request."""

    body: bytes
    headers: dict[str, str]

    async def send(self, client: httpx.AsyncClient) -> httpx.Response:
        headers = [(name.encode(), value.encode("latin-1")) for name, value in self.headers.items()]
        return await client.post(URL, content=self.body, headers=headers)


def hostile_requests() -> st.SearchStrategy[HostileRequest]:
    """Returns a strategy for requests: valid ones with some fields changed, and arbitrary bytes."""
    bodies = st.one_of(
        st.integers(1, 60).map(lambda budget_ms: _encoded(chat_body(budget_ms=budget_ms))),
        st.fixed_dictionaries({}, optional=_FIELDS).map(lambda fields: _encoded({**chat_body(), **fields})),
        st.sampled_from(sorted(_FIELDS)).flatmap(
            lambda name: _FIELDS[name].map(lambda value: _encoded({**chat_body(), name: value}))
        ),
        _JSON.map(_encoded),
        st.binary(max_size=100),
        st.integers(0, 300).map(lambda length: _encoded(chat_body())[:length]),
    )
    kinds = st.sampled_from(["application/json"] * 9 + ["text/plain"])
    return st.builds(
        lambda body, headers, kind: HostileRequest(body, {**headers, "content-type": kind}), bodies, _HEADERS, kinds
    )


def send_hostile_requests(cases: int) -> Counter[int]:
    """Sends generated requests to one server with a fake engine, one after the other; returns how often each status
    came back. Raises AssertionError, with the smallest request found, for a reply that `check_reply` refuses."""
    statuses: Counter[int] = Counter()
    with asyncio.Runner() as runner:
        app = running_app(FakeEngine(), on_miss="refuse")
        server, client = runner.run(app.__aenter__())

        @settings(max_examples=cases, deadline=None, database=None)
        @given(hostile_requests())
        def send(request: HostileRequest) -> None:
            statuses[check_reply(runner.run(request.send(client)))] += 1
            assert server.queue.open_requests == 0

        try:
            send()
        finally:
            runner.run(app.__aexit__(None, None, None))
    return statuses


def check_reply(reply: httpx.Response) -> int:
    """Returns the status of a reply; raises AssertionError for one that is neither an answer nor a client's error."""
    assert reply.status_code in (200, 400, 404, 413, 415, 429), reply.text
    if reply.status_code == 200:
        if reply.headers["content-type"].startswith("text/event-stream"):
            assert reply.text.endswith("data: [DONE]\n\n")
            assert '"error"' not in reply.text
        else:
            assert reply.json()["choices"][0]["message"]["content"]
            assert reply.headers["x-knobctl-setting"]
    else:
        error = reply.json()["error"]
        assert error["message"]
        assert len(error["message"]) <= 500
        assert "Traceback" not in error["message"]
    return reply.status_code


def _encoded(record: Any) -> bytes:
    return json.dumps(record).encode()  # non-finite numbers and lone surrogates included
