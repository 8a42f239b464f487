"""Ranks of torchrun on the CPU: each sample runs once, rows do not depend on the number of ranks, lost ranks."""

from __future__ import annotations

import multiprocessing
import socket
import threading
from dataclasses import replace
from typing import Any

import pytest

from knobctl.data.cache.reader import open_cache
from knobctl.data.cache.verify import verify_cache
from knobctl.data.errors import KnobctlError
from knobctl.precompute.latency.device_lock import SharedDevice
from knobctl.precompute.run.config import PrecomputeConfig
from knobctl.precompute.scale.ranks import MEETING_S, Launch, process_group
from knobctl.tests.support.tiny_model import assert_same_rows, run_rank

# The server imports the packages once, and the ranks that it forks have them.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["knobctl.tests.support.tiny_model"])
SAMPLES = 11
TORCHRUN = {"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture
def config(tiny_run, tmp_path) -> PrecomputeConfig:
    """The samples of the finished run, in parts so small that each rank has several."""
    return replace(tiny_run, out=tmp_path / "cache", part_samples=2, runs=1)


def launch(config: PrecomputeConfig, count: int, dies: tuple[int, int] | None = None) -> dict[int, tuple[list, Any]]:
    """Starts `count` ranks; returns, by rank, the samples run and the summary or message of those that lived."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    answers = FORKS.SimpleQueue()
    ranks = [
        FORKS.Process(
            target=run_rank,
            args=(config, rank, count, port, dies[1] if dies is not None and dies[0] == rank else None, answers),
        )
        for rank in range(count)
    ]
    for process in ranks:
        process.start()
    reports = {}
    for _ in range(count - (dies is not None)):
        rank, ran, what = answers.get()
        reports[rank] = (ran, what)
    for process in ranks:
        process.join(timeout=60)
        assert not process.is_alive()
    return reports


@pytest.mark.parametrize("count", [1, 2, 3])
def test_each_sample_runs_once_and_rows_do_not_depend_on_ranks(config, tiny_run, count):
    reports = launch(config, count)
    ran = [sample for samples, _ in reports.values() for sample in samples]
    assert sorted(ran) == sorted(open_cache(tiny_run.out).sample_ids)
    assert all(len(samples) >= SAMPLES // count for samples, _ in reports.values())
    assert all(summary["samples"] == SAMPLES for _, summary in reports.values())
    assert verify_cache(config.out) == []
    assert_same_rows(config.out, tiny_run.out)
    assert not config.out.with_name("cache.ranks").exists()
    if count == 2:  # finished: the same command runs no sample, another request is refused
        assert [samples for samples, _ in launch(config, count).values()] == [[], []]
        other = launch(replace(config, budgets=("10", "30")), count)
        assert all("budgets" in what for _, what in other.values())


def test_a_rank_that_dies_fails_the_run_whose_resumption_runs_only_the_rest(config, tiny_run):
    reports = launch(config, 2, dies=(1, 4))  # in its second part of two
    assert "lost another rank" in reports[0][1]
    assert not config.out.exists()
    reports = launch(config, 2)
    assert reports[0][0] == []  # the first rank had done its share
    assert len(reports[1][0]) == 3  # the second had five, of which two were committed
    assert_same_rows(config.out, tiny_run.out)


def test_the_error_of_one_rank_is_reported_by_all(config, tmp_path):
    (tmp_path / "cache.ranks").mkdir()
    (tmp_path / "cache.ranks" / "1-of-2").write_text("in the way")
    reports = launch(config, 2)
    assert "1-of-2" in reports[1][1]
    assert "rank 1 failed" in reports[0][1]


def test_more_ranks_than_samples_are_refused_before_any_work(config, tmp_path):
    reports = launch(replace(config, samples=1), 2)
    assert all("1 samples cannot be divided among 2" in what for _, what in reports.values())
    assert list(tmp_path.iterdir()) == []


def test_latency_runs_have_the_device_alone(tmp_path):
    """Two processes share the device; one that needs it alone waits until the other has released it."""
    ours, theirs = SharedDevice(tmp_path / "lock"), SharedDevice(tmp_path / "lock")
    events: list[str] = []
    shares, may_end = threading.Event(), threading.Event()

    def other() -> None:
        with theirs.shared():
            shares.set()
            may_end.wait(10)
            events.append("other ends")

    thread = threading.Thread(target=other)
    thread.start()
    assert shares.wait(10)
    with ours.shared():
        events.append("both share")
        may_end.set()
        with ours.alone():
            events.append("alone")
    thread.join(10)
    assert events == ["both share", "other ends", "alone"]


def test_the_rank_is_read_from_the_environment(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert Launch.from_environment() is None
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    assert Launch.from_environment() == Launch(2, 4, 0)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.delenv("MASTER_ADDR")  # a single process needs no address
    assert Launch.from_environment() is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"WORLD_SIZE": "many"}, "WORLD_SIZE 'many', which is not a whole number"),
        ({"RANK": ""}, "RANK '', which is not a whole number"),
        ({"RANK": "4"}, "RANK 4, LOCAL_RANK 0 and WORLD_SIZE 4"),
        ({"RANK": "-1"}, "RANK -1"),
        ({"WORLD_SIZE": "0", "RANK": "0"}, "WORLD_SIZE 0"),
        ({"WORLD_SIZE": "1"}, "RANK 2, LOCAL_RANK 0 and WORLD_SIZE 1"),
        ({"LOCAL_RANK": "-2"}, "LOCAL_RANK -2"),
        ({"MASTER_ADDR": None}, "MASTER_ADDR and MASTER_PORT, and the environment says '' and 29500"),
        ({"MASTER_PORT": None}, "MASTER_PORT '', which is not a whole number"),
        ({"MASTER_PORT": "29500/tcp"}, "MASTER_PORT '29500/tcp'"),
        ({"MASTER_PORT": "0"}, "'127.0.0.1' and 0"),
        ({"MASTER_PORT": "65536"}, "'127.0.0.1' and 65536"),
    ],
)
def test_an_inconsistent_environment_is_refused(monkeypatch, changes, message):
    for name, value in (TORCHRUN | changes).items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    with pytest.raises(KnobctlError, match=rf"{message}.*start with torchrun"):
        Launch.from_environment()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_never_starts_fails_the_run(monkeypatch, rank):
    """The first rank opens the port that the others connect to; each waits for the other in vain."""
    assert MEETING_S < 300
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in (TORCHRUN | {"MASTER_PORT": str(port)}).items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(KnobctlError, match=rf"rank {rank} did not meet the other 1 at 127\.0\.0\.1:{port} .*within 1 s"),
        process_group(Launch(rank, 2, 0), meeting_s=1.0),
    ):
        pass
