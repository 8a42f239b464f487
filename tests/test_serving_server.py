"""The server in a process of its own: OpenAI's client, curl, bad connections, signals."""

from __future__ import annotations

import base64
import contextlib
import json
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from knobctl.benchmarks.serve_load import check, fake_workload, load
from knobctl.tests.support.chat_requests import chat_body, messages, png
from knobctl.tests.support.fake_engine import FakeEngine
from knobctl.tests.support.fake_server import RunningServer, running_server

PATH = "/v1/chat/completions"
KEY = "secret"


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    """A server without a key that gives clients 0.5 s for their headers and 1 s for their bodies."""
    with running_server("--header-s", "0.5", "--body-s", "1") as running:
        yield running


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def ask(server: RunningServer, **fields: Any) -> httpx.Response:
    """Sends a request whose budget is met on any machine, unless `fields` has another one."""
    return httpx.post(server.url + PATH, json=chat_body(**{"budget_ms": 60_000, **fields}), timeout=60)


def raw_request(body: bytes, **headers: str) -> bytes:
    lines = {"host": "server", "content-type": "application/json", "content-length": str(len(body)), **headers}
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in lines.items() if value)
    return f"POST {PATH} HTTP/1.1\r\n{head}\r\n".encode() + body


def test_openais_client_gets_the_engines_answer(client: openai.OpenAI):
    raw = client.chat.completions.with_raw_response.create(
        model="fake", messages=messages(), temperature=0, extra_body={"budget_ms": 60_000}
    )
    found = raw.parse()
    assert found.choices[0].message.content == FakeEngine().answer(png(), "What shape is it?", 499).text
    assert found.choices[0].finish_reason == "stop"
    assert found.usage is not None
    assert found.usage.total_tokens == 21
    assert raw.headers["x-knobctl-setting"] == "high/p5/k8/n16"
    assert float(raw.headers["x-knobctl-latency-ms"]) > 20


def test_openais_client_streams(client: openai.OpenAI):
    stream = client.chat.completions.create(
        model="fake",
        messages=messages(),
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"budget_ms": 60_000},
    )
    chunks = list(stream)
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == FakeEngine().answer(png(), "What shape is it?", 499).text
    assert len([chunk for chunk in chunks if chunk.choices]) == 9  # the role, seven pieces, the end
    last = chunks[-1]
    assert last.usage is not None
    assert last.usage.completion_tokens == 7
    assert last.model_extra is not None
    assert last.model_extra["knobctl"]["setting"] == "high/p5/k8/n16"


def test_openais_client_raises_its_own_errors(client: openai.OpenAI):
    def create(**options: Any) -> None:
        client.chat.completions.create(**{"model": "fake", "messages": messages(), **options})

    with pytest.raises(openai.BadRequestError, match="greedy"):
        create(temperature=0.5)
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        create(model="gpt-9")
    for stream in (False, True):
        with pytest.raises(openai.RateLimitError, match="budget") as caught:
            create(extra_body={"budget_ms": 2}, stream=stream)
        assert caught.value.response.headers["x-should-retry"] == "false"
    assert [model.id for model in client.models.list()] == ["fake"]


def test_openais_client_does_not_retry_a_budget_that_cannot_be_met(server: RunningServer):
    before = server.metric('knobctl_requests_total{outcome="refused_budget"}')
    retrying = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=3)
    with retrying, pytest.raises(openai.RateLimitError):
        retrying.chat.completions.create(model="fake", messages=messages(), extra_body={"budget_ms": 2})
    assert server.metric('knobctl_requests_total{outcome="refused_budget"}') == before + 1


def test_curl_sends_an_image_as_the_guide_shows(server: RunningServer, tmp_path):
    file = tmp_path / "body.json"
    file.write_text(json.dumps(chat_body(budget_ms=None)))
    command = ["curl", "-sS", "-i", server.url + PATH, "-H", "content-type: application/json"]
    command += ["-H", "x-knobctl-budget-ms: 60000", "-d", f"@{file}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "HTTP/1.1 200 OK" in done.stdout
    assert "x-knobctl-budget-ms: 60000.0" in done.stdout


def test_a_body_of_64_mib_gets_413(server: RunningServer, tmp_path):
    file = tmp_path / "body.json"
    file.write_bytes(b'{"messages": "' + base64.b64encode(bytes(48 << 20)) + b'"}')
    command = ["curl", "-sS", "-w", "%{http_code}", server.url + PATH, "-H", "content-type: application/json"]
    for extra in ([], ["-H", "expect:"], ["-H", "transfer-encoding: chunked"]):
        done = subprocess.run([*command, *extra, "--data-binary", f"@{file}"], capture_output=True, text=True)
        assert (done.returncode, done.stdout[-3:]) == (0, "413"), done.stderr
        assert "body_too_large" in done.stdout
    response = httpx.post(
        server.url + PATH, content=file.read_bytes(), headers={"content-type": "application/json"}, timeout=30
    )
    assert response.status_code == 413
    assert ask(server).status_code == 200


def test_slow_and_silent_clients_are_disconnected(server: RunningServer):
    start = raw_request(b"{}")[:40]
    request = raw_request(json.dumps(chat_body()).encode())
    with server.connect() as silent, server.connect() as slow, server.connect() as late:
        slow.sendall(start)
        late.sendall(request[:-5])  # everything but the end of the body
        for connection in (silent, slow):
            connection.settimeout(5)
            assert connection.recv(1000) == b""
        late.settimeout(5)
        assert b"408" in late.recv(1000)
    assert ask(server).status_code == 200


def test_a_second_request_on_a_connection_may_not_be_slow_either(server: RunningServer):
    with server.connect() as connection:
        connection.sendall(raw_request(b"{}"))
        assert b"400" in connection.recv(10_000)
        connection.settimeout(5)
        connection.sendall(b"POST /v1/chat")
        received = b"x"
        while received:  # the end of the first reply, then the end of the connection
            received = connection.recv(10_000)
    assert ask(server).status_code == 200


@pytest.mark.parametrize(
    "sent",
    [
        raw_request(json.dumps(chat_body()).encode())[:-20],  # truncated
        b"\x16\x03\x01\x02\x00\x01",  # TLS
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST " + PATH.encode() + b" HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n",
        b"POST " + PATH.encode() + b" HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"GET /health HTTP/1.1\r\nhost: x\r\n" + b"x-a: " + b"y" * 1_000_000 + b"\r\n\r\n",
    ],
)
def test_broken_requests_leave_the_server_serving(server: RunningServer, sent: bytes):
    with server.connect() as connection:
        connection.settimeout(5)
        with contextlib.suppress(ConnectionError):  # the server closed first
            connection.sendall(sent)
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_WR)
            assert b" 200 " not in connection.recv(1000)
    assert ask(server).status_code == 200


def test_a_key_is_compared_with_the_environments():
    with running_server(environment={"KNOBCTL_API_KEY": KEY}) as server:
        for key, status in (("wrong", 401), (KEY, 200)):
            headers = {"authorization": f"Bearer {key}", "x-knobctl-budget-ms": "60000"}
            assert httpx.post(server.url + PATH, json=chat_body(), headers=headers).status_code == status
        large = json.dumps(chat_body("x" * (10 << 20)))
        response = httpx.post(server.url + PATH, content=large, headers={"content-type": "application/json"})
        assert response.status_code == 401
        assert httpx.get(f"{server.url}/health").json() == {"status": "ready"}


def test_a_client_that_goes_while_it_waits_is_dropped():
    with running_server("--scale", "50") as server, ThreadPoolExecutor(1) as pool:  # 200 ms to 1 s
        running = pool.submit(ask, server)
        server.wait_for("knobctl_open_requests", 1)
        with server.connect() as connection:
            connection.sendall(raw_request(json.dumps(chat_body("gone", budget_ms=60_000)).encode()))
            server.wait_for("knobctl_open_requests", 2)
        server.wait_for('knobctl_requests_total{outcome="client_gone"}', 1)
        assert running.result().status_code == 200
        assert server.metric('knobctl_requests_total{outcome="answered"}') == 1
        assert server.metric("knobctl_answers_total") == 1


def test_sigterm_finishes_the_queue_and_refuses_new_requests():
    with running_server("--scale", "50") as server, ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(ask, server) for _ in range(2)]
        server.wait_for("knobctl_open_requests", 2)
        server.process.send_signal(signal.SIGTERM)
        while httpx.get(f"{server.url}/health").status_code != 503:
            time.sleep(0.02)
        refused = ask(server)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert [future.result().status_code for future in waiting] == [200, 200]
        assert server.process.wait(10) == 0


@pytest.mark.slow
def test_under_load_each_request_has_one_outcome_and_the_engines_text():
    work = fake_workload((10, 20, 40, 80, 160, 320, 640))
    with running_server("--max-queue", "4") as server:
        replies = load(server, work, clients=8, seconds=3)
        check(replies, server, work)
    assert {reply.outcome for reply in replies} == {"answered", "budget_unmet", "queue_full"}


@pytest.mark.slow
def test_draining_ends_after_its_limit():
    with running_server("--scale", "100", "--drain-s", "0.3") as server, ThreadPoolExecutor(2) as pool:  # up to 2 s
        waiting = [pool.submit(ask, server) for _ in range(2)]
        server.wait_for("knobctl_open_requests", 2)
        server.process.send_signal(signal.SIGTERM)
        assert sorted(future.result().status_code for future in waiting) == [200, 503]
        assert server.process.wait(10) == 0


@pytest.mark.slow
def test_a_killed_server_starts_again_on_its_port():
    with running_server() as killed:
        assert ask(killed).status_code == 200
        with killed.connect() as connection:
            connection.sendall(raw_request(json.dumps(chat_body()).encode())[:-5])
            assert killed.stop(signal.SIGKILL)[0] == -signal.SIGKILL
    with running_server("--port", str(killed.port)) as again:
        assert again.port == killed.port
        assert ask(again).status_code == 200
