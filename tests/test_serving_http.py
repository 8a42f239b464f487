"""The application's replies, without a socket."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest

from knobctl.serving.answer import Answer
from knobctl.serving.http.config import Limits
from knobctl.tests.support.chat_requests import chat_body, data_uri, messages, png, running_app
from knobctl.tests.support.fake_engine import FakeEngine

URL = "/v1/chat/completions"


def reply(
    body: Any = None, *, engine: FakeEngine | None = None, headers: dict[str, str] | None = None, **options: Any
) -> httpx.Response:
    """Sends one chat request to a server with these options."""

    async def send(client: httpx.AsyncClient) -> httpx.Response:
        return await client.post(URL, json=chat_body() if body is None else body, headers=headers)

    return served(send, engine=engine, **options)


def served(
    send: Callable[[httpx.AsyncClient], Awaitable[Any]], *, engine: FakeEngine | None = None, **options: Any
) -> Any:
    async def run() -> Any:
        async with running_app(engine or FakeEngine(), **options) as (_, client):
            return await send(client)

    return asyncio.run(asyncio.wait_for(run(), 30))


def error(response: httpx.Response) -> dict[str, Any]:
    found = response.json()
    assert set(found) == {"error"}
    assert set(found["error"]) == {"message", "type", "param", "code"}
    return found["error"]


def metric(text: str, name: str) -> float:
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name))


def test_an_answer_is_the_engines_with_usage_and_a_report():
    response = reply(chat_body("What shape is it?", max_tokens=5))
    direct = FakeEngine().answer(png(), "What shape is it?", 49, max_new_tokens=5)
    found = response.json()
    assert response.status_code == 200
    assert found["choices"][0]["message"]["content"] == direct.text
    assert found["choices"][0]["finish_reason"] == "length"
    assert found["usage"] == {"prompt_tokens": 14, "completion_tokens": 5, "total_tokens": 19}
    report = {name: value for name, value in response.headers.items() if name.startswith("x-knobctl-")}
    assert report == {
        "x-knobctl-setting": str(direct.setting),
        "x-knobctl-expected-ms": "20.0",
        "x-knobctl-latency-ms": "20.0",
        "x-knobctl-queue-ms": "0.0",
        "x-knobctl-budget-ms": "50.0",
    }


def test_an_expected_latency_that_is_not_known_is_left_out_of_the_report():
    class Unknown(FakeEngine):
        def answer(self, *arguments: Any, **options: Any) -> Answer:
            return replace(super().answer(*arguments, **options), expected_latency_ms=None)

    response = reply(chat_body("What shape is it?"), engine=Unknown())
    assert response.status_code == 200
    assert "x-knobctl-latency-ms" in response.headers
    assert "x-knobctl-expected-ms" not in response.headers


@pytest.mark.parametrize("include_usage", [False, True])
def test_a_stream_has_the_same_text_and_reports_in_its_last_event(include_usage: bool):
    options = {"stream_options": {"include_usage": True}} if include_usage else {}
    response = reply(chat_body(stream=True, **options))
    assert response.headers["content-type"].startswith("text/event-stream")
    *events, done, end = response.text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    chunks = [json.loads(line.removeprefix("data: ")) for line in events]
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks if chunk["choices"])
    assert text == FakeEngine().answer(png(), "What shape is it?", 49).text
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert [chunk for chunk in chunks if "knobctl" in chunk] == [chunks[-1]]
    assert chunks[-1]["knobctl"]["setting"] == "high/p5/k8/n16"
    assert ("usage" in chunks[-1]) == include_usage
    assert chunks[-2 if include_usage else -1]["choices"][0]["finish_reason"] == "stop"


def test_a_budget_that_cannot_be_met_gets_429_and_no_retry_also_in_a_stream():
    for stream in (False, True):
        response = reply(chat_body(budget_ms=3, stream=stream), on_miss="refuse")
        assert (response.status_code, response.headers["x-should-retry"]) == (429, "false")
        assert error(response)["code"] == "budget_unmet"
        assert reply(chat_body(budget_ms=3, stream=stream), on_miss="fastest").status_code == 200


def test_the_header_decides_on_the_budget():
    response = reply(chat_body(budget_ms=30), headers={"x-knobctl-budget-ms": "200"})
    assert response.headers["x-knobctl-budget-ms"] == "200.0"
    slo = {"x-llm-d-slo-ttft-ms": "100", "x-llm-d-slo-tpot-ms": "2"}
    assert reply(chat_body(budget_ms=None, max_tokens=6), headers=slo).headers["x-knobctl-budget-ms"] == "110.0"
    # The task's own limit is 16 tokens, whatever else is asked for.
    assert reply(chat_body(budget_ms=None, max_tokens=999), headers=slo).headers["x-knobctl-budget-ms"] == "130.0"


def test_without_a_budget_the_default_applies_or_the_request_is_refused():
    assert reply(chat_body(budget_ms=None), default_budget_ms=77.0).headers["x-knobctl-budget-ms"] == "77.0"
    response = reply(chat_body(budget_ms=None))
    assert (response.status_code, error(response)["param"]) == (400, "budget_ms")


def _huge_png() -> bytes:
    """A PNG whose header announces 9,000 x 9,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 9_000, 9_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"x")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        (data_uri(b"not an image"), "cannot be decoded"),
        (data_uri(b""), "empty"),
        (data_uri(png())[:-59], "base64"),
        (data_uri(png()[:-30]), "cannot be decoded"),
        (data_uri(_huge_png()), "9000 x 9000 pixels"),
        ("data:image/png;base64,\u00e9\u00e9", "base64"),
        ("data:text/html;base64,aGk=", "data URI"),
        ("data:image/png,abc", "data URI"),
        ("/etc/passwd", "data URI"),
        ("file:///etc/passwd", "data URI"),
        ("http://example.org/x.png", "data URI"),
        ("https://example.org/x.png", "not fetched from this address"),
        ("https://127.0.0.1/x.png", "not fetched from this address"),
        ("https://allowed.example:8443/x.png", "not fetched from this address"),
        ("https://user@allowed.example/x.png", "not fetched from this address"),
        ("https://[::1", "cannot be parsed"),
        ("https://allowed.example/a b", "percent-encoded"),
        ("", "data URI"),
    ],
)
def test_an_image_that_cannot_be_used_gets_one_clear_error(url: str, reason: str):
    response = reply(chat_body(messages=messages(url=url)), allowed_image_hosts=("allowed.example",))
    assert response.status_code == 400
    assert reason in error(response)["message"]


def test_an_image_is_bounded_before_it_is_decoded():
    image = png() + bytes(5000)
    response = reply(chat_body(messages=messages(image=image)), limits=Limits(image_bytes=5000))
    assert error(response)["code"] == "image_too_large"
    assert reply(chat_body(messages=messages(image=image)), limits=Limits(image_bytes=len(image))).status_code == 200


@pytest.mark.parametrize(
    ("question", "reason"),
    [("", "empty"), (" \n ", "empty"), ("x" * 101, "101 characters"), ("w " * 50 + "w" * 150, "characters")],
)
def test_an_empty_or_endless_question_is_refused(question: str, reason: str):
    response = reply(chat_body(question), limits=Limits(question_chars=100))
    assert response.status_code == 400
    assert reason in error(response)["message"]


def test_a_prompt_that_is_too_long_for_the_model_gets_the_engines_reason():
    response = reply(chat_body("word " * 300))
    assert (response.status_code, "more than 200 words" in error(response)["message"]) == (400, True)


def test_a_body_without_json_type_is_refused():
    """A page in a browser can send other types to a local server without asking it first."""

    async def send(client: httpx.AsyncClient) -> httpx.Response:
        return await client.post(URL, content=json.dumps(chat_body()), headers={"content-type": "text/plain"})

    assert served(send).status_code == 415


@pytest.mark.parametrize("announced", [None, "10", "999999"])
def test_a_body_is_bounded_whatever_its_headers_announce(announced: str | None):
    async def chunks():
        for _ in range(100):
            yield b" " * 1000

    async def send(client: httpx.AsyncClient) -> httpx.Response:
        headers = {"content-type": "application/json"} | ({"content-length": announced} if announced else {})
        return await client.post(URL, content=chunks(), headers=headers)

    response = served(send, limits=Limits(body_bytes=50_000))
    assert (response.status_code, error(response)["code"]) == (413, "body_too_large")


def test_a_body_that_stalls_times_out():
    async def chunks():
        yield b"{"
        await asyncio.sleep(5)

    async def send(client: httpx.AsyncClient) -> httpx.Response:
        return await client.post(URL, content=chunks(), headers={"content-type": "application/json"})

    assert served(send, limits=Limits(body_s=0.05)).status_code == 408


def test_everything_but_health_needs_the_key():
    async def send(client: httpx.AsyncClient) -> None:
        for headers in (
            {},
            {"authorization": "Bearer no"},
            {"authorization": "secret"},
            {"authorization": "Basic secret"},
        ):
            for path in ("/v1/models", "/metrics", "/openapi.json"):
                assert (await client.get(path, headers=headers)).status_code == 401
            response = await client.post(URL, json=chat_body(), headers=headers)
            assert (response.status_code, error(response)["code"]) == (401, "invalid_api_key")
            assert (await client.get("/health", headers=headers)).status_code == 200
        right = {"authorization": "Bearer secret"}
        assert (await client.post(URL, json=chat_body(), headers=right)).status_code == 200
        for path in ("/v1/models", "/metrics", "/openapi.json"):
            assert (await client.get(path, headers=right)).status_code == 200

    served(send, api_key="secret")


def test_an_unexpected_error_shows_no_internals_and_the_server_goes_on():
    def fail(question: str) -> None:
        if "bad" in question:
            raise RuntimeError("/secret/path: CUDA error")

    async def run() -> None:
        async with running_app(FakeEngine(before_answer=fail)) as (server, _):
            transport = httpx.ASGITransport(server.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
                for stream in (False, True):
                    response = await client.post(URL, json=chat_body("bad", stream=stream))
                    assert response.status_code == 500
                    assert "secret" not in response.text
                    assert "CUDA" not in response.text
                    assert error(response)["type"] == "server_error"
                assert (await client.post(URL, json=chat_body("good"))).status_code == 200
                assert metric((await client.get("/metrics")).text, 'knobctl_requests_total{outcome="failed"}') == 2

    asyncio.run(run())


def test_only_chat_requests_are_counted():
    async def send(client: httpx.AsyncClient) -> str:
        for path in ("/metrics", "/v1/models", "/openapi.json", "/nowhere"):
            assert (await client.get(path)).status_code in (401, 404)
        assert (await client.post(URL, json=chat_body())).status_code == 401
        return (await client.get("/metrics", headers={"authorization": "Bearer key"})).text

    text = served(send, api_key="key")
    assert metric(text, 'knobctl_requests_total{outcome="unauthorized"}') == 1
    assert metric(text, "knobctl_requests_total") == 1


def test_every_request_is_counted_once_with_its_outcome():
    async def send(client: httpx.AsyncClient) -> str:
        for stream in (False, True):
            await client.post(URL, json=chat_body(stream=stream))
            await client.post(URL, json=chat_body(budget_ms=2, stream=stream))
            await client.post(URL, json=chat_body("word " * 300, stream=stream))
            await client.post(URL, json=chat_body(temperature=1, stream=stream))
        return (await client.get("/metrics")).text

    text = served(send)
    counts = {name: metric(text, f'knobctl_requests_total{{outcome="{name}"}}') for name in OUTCOMES}
    assert counts == {"answered": 2, "refused_budget": 2, "invalid": 4}
    assert metric(text, "knobctl_requests_total") == 8
    assert metric(text, 'knobctl_answers_total{setting="high/p5/k8/n16"}') == 2
    assert metric(text, 'knobctl_stage_seconds_sum{stage="total"}') == pytest.approx(0.04)
    assert metric(text, 'knobctl_stage_seconds_count{stage="vision"}') == 2
    assert metric(text, "knobctl_queue_seconds_count") == 2
    assert metric(text, "knobctl_open_requests") == 0


OUTCOMES = ("answered", "refused_budget", "invalid")


def test_an_answer_that_took_longer_than_its_budget_is_counted():
    async def send(client: httpx.AsyncClient) -> str:
        await client.post(URL, json=chat_body(budget_ms=2))
        await client.post(URL, json=chat_body(budget_ms=200))
        return (await client.get("/metrics")).text

    assert metric(served(send, on_miss="fastest"), "knobctl_over_budget_total") == 1


def test_models_lists_the_model_and_its_tasks():
    async def send(client: httpx.AsyncClient) -> Any:
        return (await client.get("/v1/models")).json()

    (model,) = served(send, engine=FakeEngine(tasks={"b": 4, "a": 8}))["data"]
    assert (model["id"], model["object"], model["tasks"]) == ("fake", "model", ["a", "b"])


def test_unknown_paths_and_methods_get_openais_error():
    async def send(client: httpx.AsyncClient) -> None:
        for method, path, status in (("GET", "/v1/nothing", 404), ("GET", URL, 405), ("POST", "/health", 405)):
            response = await client.request(method, path, content=b"x" * 1000)
            assert response.status_code == status
            assert error(response)["type"] == "invalid_request_error"

    served(send)


def test_the_schema_describes_the_request():
    async def send(client: httpx.AsyncClient) -> Any:
        return (await client.get("/openapi.json")).json()

    schema = served(send)
    body = schema["paths"][URL]["post"]["requestBody"]["content"]["application/json"]["schema"]
    name = body["$ref"].rpartition("/")[2]
    assert "budget_ms" in schema["components"]["schemas"][name]["properties"]
    named = {line.rpartition("/")[2] for line in json.dumps(schema).split('"') if line.startswith("#/components/")}
    assert named <= set(schema["components"]["schemas"])


def test_base64_of_an_image_in_another_format_is_decoded():
    gif = base64.b64decode("R0lGODlhAQABAIAAAAAAAP///ywAAAAAAQABAAACAUwAOw==")
    response = reply(chat_body(messages=messages(url="data:image/gif;base64," + base64.b64encode(gif).decode())))
    assert " 1x1 " in response.json()["choices"][0]["message"]["content"]
