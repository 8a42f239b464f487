"""A server in a process of its own, with a fake engine or, given controllers, a real one.

`python -m knobctl.tests.support.fake_server`
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

import click
import httpx

from knobctl.serving.answer import Engine
from knobctl.serving.http.config import Limits, ServerConfig
from knobctl.serving.http.server import serve
from knobctl.tests.support.fake_engine import FakeEngine


@click.command()
@click.option("--port", default=0)
@click.option("--max-queue", default=64)
@click.option("--scale", default=1.0, help="Multiple of the settings' latencies.")
@click.option("--on-miss", default="refuse")
@click.option("--drain-s", default=10.0)
@click.option("--header-s", default=10.0)
@click.option("--body-s", default=10.0)
@click.option("--controllers", help="Run these and their model on the CPU.")
@click.option("--task", help="With --controllers: the dataset of all questions.")
def main(
    port: int,
    max_queue: int,
    scale: float,
    on_miss: str,
    drain_s: float,
    header_s: float,
    body_s: float,
    controllers: str | None,
    task: str | None,
) -> None:
    config = ServerConfig(
        port=port,
        max_queue=max_queue,
        on_miss="refuse" if on_miss == "refuse" else "fastest",
        drain_s=drain_s,
        api_key=os.environ.get("KNOBCTL_API_KEY"),
        limits=Limits(header_s=header_s, body_s=body_s),
    )
    engine: Engine = FakeEngine(sleep=True, scale=scale)
    if controllers is not None:
        from knobctl.serving.engine import Engine as RealEngine

        engine = RealEngine(controllers, device="cpu", task=task)
    serve(engine, config, lambda url: print(url, flush=True))


class RunningServer:
    """The process of a server, and its address."""

    def __init__(self, *options: str, environment: dict[str, str] | None = None) -> None:
        command = [sys.executable, "-m", "knobctl.tests.support.fake_server", *options]
        self._log = tempfile.TemporaryFile("w+")  # a pipe that nobody reads would block the server  # noqa: SIM115
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        assert self.url.startswith("http://127.0.0.1:"), self.stop()
        self.port = int(self.url.rpartition(":")[2])

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), 10)

    def metric(self, name: str) -> float:
        """Returns the sum of the metrics whose lines start with `name`."""
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))

    def wait_for(self, name: str, value: float) -> None:
        """Waits until a metric has reached a value."""
        deadline_s = time.monotonic() + 10
        while self.metric(name) < value:
            assert time.monotonic() < deadline_s, f"{name} stayed below {value}"
            time.sleep(0.02)

    def stop(self, signal_number: int = signal.SIGTERM) -> tuple[int, str]:
        """Sends a signal and returns the exit status and the log."""
        if self.process.poll() is None:
            self.process.send_signal(signal_number)
        self.process.communicate(timeout=30)
        self._log.seek(0)
        return self.process.returncode, self._log.read()


@contextmanager
def running_server(*options: str, environment: dict[str, str] | None = None) -> Iterator[RunningServer]:
    """Runs a server while the body runs."""
    server = RunningServer(*options, environment=environment)
    try:
        yield server
    finally:
        server.stop(signal.SIGKILL)


if __name__ == "__main__":
    main()
