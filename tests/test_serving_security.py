"""Keys, hosts, and images by URL."""

from __future__ import annotations

import http.server
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from knobctl.data.errors import KnobctlError
from knobctl.serving.http.config import ServerConfig
from knobctl.serving.http.remote_image import FetchError, ImageFetcher
from knobctl.serving.http.security import read_api_key
from knobctl.tests.support.chat_requests import png

HOST = "images.example"
PUBLIC = "93.184.216.34"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_this_machine_needs_no_key(host: str):
    ServerConfig(host=host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])
def test_another_host_needs_a_key(host: str):
    with pytest.raises(KnobctlError, match="needs an API key"):
        ServerConfig(host=host)
    assert ServerConfig(host=host, api_key="secret").host == host


def test_a_key_is_never_shown():
    assert "secret" not in repr(ServerConfig(api_key="secret"))


@pytest.mark.parametrize("budget_ms", [0.0, -1.0, float("nan"), float("inf")])
def test_a_default_budget_is_in_range(budget_ms: float):
    with pytest.raises(KnobctlError, match="default budget"):
        ServerConfig(default_budget_ms=budget_ms)


@pytest.mark.parametrize("options", [{"port": 65536}, {"max_queue": -1}, {"drain_s": float("nan")}])
def test_options_out_of_range_are_refused(options: dict[str, Any]):
    with pytest.raises(KnobctlError, match="must be"):
        ServerConfig(**options)


def test_the_options_need_no_library_of_the_extra():
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['fastapi', 'starlette', 'uvicorn', 'pydantic', "
        "'prometheus_client', 'torch', 'numpy']))\nimport knobctl.serving.http.config"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("host", ["", "Example.org", "https://example.org", "example.org/x", "*.example.org", "a:443"])
def test_an_image_host_is_a_plain_name(host: str):
    with pytest.raises(KnobctlError, match="image host"):
        ServerConfig(allowed_image_hosts=(host,))


def test_the_key_comes_from_a_file_or_the_environment(tmp_path: Path):
    file = tmp_path / "key"
    file.write_text("from-file\n")
    environment = {"KNOBCTL_API_KEY": "from-environment"}
    assert read_api_key(file, environment) == "from-file"
    assert read_api_key(None, environment) == "from-environment"
    assert read_api_key(None, {}) is None


@pytest.mark.parametrize("content", [b"", b"\n", b" key", b"a\tb", b"\xff\xfe"])
def test_a_key_that_no_header_could_carry_is_refused(tmp_path: Path, content: bytes):
    file = tmp_path / "key"
    file.write_bytes(content)
    with pytest.raises(KnobctlError, match="API key"):
        read_api_key(file, {})
    with pytest.raises(KnobctlError, match="cannot be read"):
        read_api_key(tmp_path / "missing", {})
    with pytest.raises(KnobctlError, match="API key"):
        read_api_key(None, {"KNOBCTL_API_KEY": ""})


class ImageServer(http.server.BaseHTTPRequestHandler):
    """Serves an image, a redirect to it, an endless body, and a slow one."""

    def do_GET(self) -> None:
        assert self.headers["host"] == HOST
        if self.path == "/drip":  # a header that never ends: no single read takes long
            with suppress(OSError):
                for _ in range(100):
                    self.wfile.write(b"x")
                    self.wfile.flush()
                    time.sleep(0.05)
            return
        if self.path == "/redirect":
            self.send_response(302)
            self.send_header("location", f"https://{HOST}/image.png")
            self.end_headers()
            return
        self.send_response(200)
        self.end_headers()
        try:
            if self.path == "/image.png?size=1":
                self.wfile.write(png())
            for _ in range(1000 if self.path == "/endless" else 0):
                self.wfile.write(bytes(1000))
            for _ in range(30 if self.path == "/slow" else 0):
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(0.05)
        except OSError:  # the client had enough
            pass

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def fetcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageFetcher]:
    """A fetcher whose connections all lead to a local server that has a certificate for HOST."""
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = folder / "key.pem", folder / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={HOST}"]
    command += ["-addext", f"subjectAltName=DNS:{HOST}", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), ImageServer)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def connect(address: str, timeout_s: float) -> socket.socket:
        assert address == PUBLIC
        return socket.create_connection(server.server_address[:2], timeout_s)

    trusted = ssl.create_default_context(cafile=str(certificate))
    yield ImageFetcher(lambda _host: [PUBLIC], connect, trusted)
    server.shutdown()
    server.server_close()


def test_an_image_is_fetched_from_the_address_that_was_checked(fetcher: ImageFetcher):
    assert fetcher.fetch(HOST, "/image.png?size=1", 10_000, 5) == png()


def test_redirects_endless_and_slow_bodies_are_refused(fetcher: ImageFetcher):
    for target, reason in (("/redirect", "status 302"), ("/endless", "more than 10,000 bytes")):
        with pytest.raises(FetchError, match=reason):
            fetcher.fetch(HOST, target, 10_000, 5)
    for target in ("/slow", "/drip"):
        start_s = time.monotonic()
        with pytest.raises(FetchError, match=r"more than 0\.3 s"):
            fetcher.fetch(HOST, target, 10_000, 0.3)
        assert time.monotonic() - start_s < 2


def test_a_certificate_for_another_name_is_refused(fetcher: ImageFetcher):
    with pytest.raises(FetchError, match="connection"):
        fetcher.fetch("other.example", "/image.png?size=1", 10_000, 5)


@pytest.mark.parametrize(
    "addresses",
    [
        [],
        ["127.0.0.1"],
        ["10.0.0.1"],
        ["169.254.169.254"],
        ["192.168.0.1"],
        ["100.64.0.1"],
        ["0.0.0.0"],
        ["::1"],
        ["fe80::1"],
        ["fd00::1"],
        ["::ffff:127.0.0.1"],
        [PUBLIC, "10.0.0.1"],
    ],
)
def test_a_host_with_a_private_address_is_never_contacted(addresses: list[str]):
    def connect(address: str, _timeout_s: float) -> socket.socket:
        pytest.fail(f"connected to {address}")

    with pytest.raises(FetchError, match="no public address"):
        ImageFetcher(lambda _host: addresses, connect).fetch(HOST, "/", 10_000, 5)


def test_a_host_that_cannot_be_resolved_is_an_error_of_the_client():
    def resolve(_host: str) -> list[str]:
        raise socket.gaierror("no such host")

    with pytest.raises(FetchError, match="connection"):
        ImageFetcher(resolve).fetch(HOST, "/", 10_000, 5)
