"""A Ray cluster of several nodes on this machine, and what a test may kill there."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

# Nodes that are killed are missed after three seconds instead of fifteen or more.
QUICK = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000, "health_check_failure_threshold": 3}
ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}


class RayCluster:
    """The nodes: a head, and others that may be killed, with one CPU each."""

    def __init__(self, nodes: int) -> None:
        from ray.cluster_utils import Cluster

        self._cluster: Any = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 1, "include_dashboard": False, "_system_config": QUICK},
            shutdown_at_exit=False,
        )
        self._others: list[Any] = []
        for _ in range(nodes - 1):
            self.add_node()
        self.address: str = self._cluster.address

    def add_node(self) -> None:
        """Adds a node."""
        self._others.append(self._cluster.add_node(num_cpus=1))

    def kill_node(self, draw: random.Random) -> None:
        """Kills a node that is not the head, with everything that runs there."""
        node = self._others.pop(draw.randrange(len(self._others)))
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        children = raylet.children(recursive=True)
        for process in (raylet, *children):
            kill(process)
        self._cluster.remove_node(node, allow_graceful=False)

    def kill_worker(self, draw: random.Random, within_s: float = 60.0) -> bool:
        """Kills an actor that runs a call; returns whether there was one within `within_s`."""
        end = time.monotonic() + within_s
        while time.monotonic() < end:
            if found := actors():
                kill(draw.choice(found))
                return True
            time.sleep(0.05)
        return False

    def close(self) -> None:
        """Stops all nodes."""
        self._cluster.shutdown()


def actors() -> list[psutil.Process]:
    """The processes of this test's Ray that run a call of a worker."""
    mine = os.environ.get("RAY_TMPDIR", "")
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = " ".join(process.info["cmdline"] or ())
        if command.startswith("ray::_Actor.call") and _environment(process).get("RAY_TMPDIR") == mine:
            found.append(process)
    return found


def left_behind(folder: Path) -> list[str]:
    """The command lines of processes that use this Ray's folder."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        command = " ".join(process.info["cmdline"] or ())
        if process.pid != os.getpid() and process.info["status"] != psutil.STATUS_ZOMBIE and str(folder) in command:
            found.append(command)
    return found


def kill(process: psutil.Process) -> None:
    """Kills a process, which may have ended."""
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return dict(process.environ())
    except psutil.Error:
        return {}


@contextmanager
def ray_home() -> Iterator[Path]:
    """While the body runs, Ray keeps all its files, also those of the user's home, in one folder, which is removed.

    The folder's path is short: Ray's sockets are in it, and their paths are limited to 107 characters.
    """
    folder = Path(tempfile.mkdtemp(prefix="kr-"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**ENVIRONMENT, "HOME": str(folder), "RAY_TMPDIR": str(folder)}.items():
            patch.setenv(name, value)
        patch.delenv("RAY_ADDRESS", raising=False)
        try:
            yield folder
        finally:
            end = time.monotonic() + 20
            while (left := left_behind(folder)) and time.monotonic() < end:
                time.sleep(0.1)
            shutil.rmtree(folder, ignore_errors=True)
            assert left == []


@contextmanager
def ray_cluster(nodes: int = 3) -> Iterator[RayCluster]:
    """A cluster for the body. Nothing of it is left afterwards."""
    with ray_home():
        cluster = RayCluster(nodes)
        try:
            yield cluster
        finally:
            cluster.close()
