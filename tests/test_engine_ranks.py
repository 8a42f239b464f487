"""Ranks of torchrun: rows do not depend on their number; ranks that fail, are lost or never start."""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.connection
import threading
from dataclasses import replace
from typing import Any

import pytest

from knobctl.data.cache.reader import open_cache
from knobctl.data.cache.verify import verify_cache
from knobctl.data.errors import KnobctlError
from knobctl.precompute.latency.device_lock import SharedDevice
from knobctl.precompute.run.config import PrecomputeConfig
from knobctl.precompute.scale.launch import precompute
from knobctl.precompute.scale.ranks import MEETING_S, Launch, precompute_ranks
from knobctl.tests.support.tiny_model import assert_same_rows, run_rank

# The server imports once; the processes that it forks need not import anything.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["knobctl.tests.support.tiny_model"])
SAMPLES = 11
TORCHRUN = {"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}


@pytest.fixture
def config(tiny_run, tmp_path) -> PrecomputeConfig:
    """The samples of the finished run, in parts of two."""
    return replace(tiny_run, out=tmp_path / "cache", part_samples=2, runs=1)


def launch(config: PrecomputeConfig, count: int, dies: tuple[int, int] | None = None) -> dict[int, tuple[list, Any]]:
    """Starts `count` ranks and returns, for each that survives, its samples and its summary or error message."""
    answers = FORKS.SimpleQueue()
    ranks = [
        FORKS.Process(
            target=run_rank,
            args=(config, rank, count, dies[1] if dies is not None and dies[0] == rank else None, answers),
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


@pytest.mark.parametrize("count", [2, 3])
def test_rows_do_not_depend_on_ranks(config, tiny_run, count):
    reports = launch(config, count)
    ran = [sample for samples, _ in reports.values() for sample in samples]  # all but those of rank 0's own worker
    assert len(ran) == len(set(ran))
    assert all(summary["samples"] == SAMPLES for _, summary in reports.values())
    assert verify_cache(config.out) == []
    assert_same_rows(config.out, tiny_run.out)
    assert [path.name for path in config.out.parent.iterdir()] == ["cache"]
    if count == 2:  # complete: the same command runs nothing, another request is refused
        assert [samples for samples, _ in launch(config, count).values()] == [[], []]
        other = launch(replace(config, budgets=("10", "30")), count)
        assert all("budgets" in what for _, what in other.values())


def test_the_other_ranks_take_over_the_part_of_one_that_dies(config):
    config = replace(config, samples=24)
    reports = launch(config, 2, dies=(1, 2))  # in the middle of its first part
    assert reports[0][1]["samples"] == 24
    assert verify_cache(config.out) == []
    assert len(open_cache(config.out).sample_ids) == 24


def test_the_first_rank_that_dies_fails_the_run_which_is_resumed(config):
    config = replace(config, samples=24)
    reports = launch(config, 2, dies=(0, 3))
    assert "rank 0 of 2 is lost" in reports[1][1]
    assert "Run the same command again" in reports[1][1]
    assert 3 <= len(list((config.out / "samples").iterdir())) < 12
    assert precompute(config)["samples"] == 24  # and without ranks
    assert verify_cache(config.out) == []


def test_the_error_of_one_rank_is_reported_by_all(config):
    reports = launch(replace(config, model="nowhere"), 2)
    assert all("failed: " in what and "nowhere" in what for _, what in reports.values())
    assert not config.out.exists()


@pytest.mark.parametrize("change", [{"ray": "auto"}, {"workers": 2}])
def test_ranks_exclude_workers(config, monkeypatch, change):
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(KnobctlError, match="torchrun both start workers"):
        precompute(replace(config, **change))


def test_a_rank_that_cannot_reach_the_first_one_says_so_within_five_minutes(config):
    assert MEETING_S < 300
    with pytest.raises(KnobctlError, match=r"rank 1 could not reach rank 0 of 2 within 1 s .*at the same time"):
        precompute_ranks(config, Launch(1, 2, 0), meeting_s=1.0)


def test_the_address_of_an_earlier_start_is_not_used(config, tmp_path):
    """Its port may belong to another program now."""
    home = tmp_path / "cache.ranks.address"
    home.mkdir()
    with multiprocessing.connection.Listener(("127.0.0.1", 0), authkey=b"another") as listener:
        address = {"host": "127.0.0.1", "port": listener.address[1], "key": "00" * 32}
        (home / "address.json").write_text(json.dumps(address))
        thread = threading.Thread(target=refuse_one, args=(listener,))
        thread.start()
        with pytest.raises(KnobctlError, match="rank 1 could not reach rank 0"):
            precompute_ranks(config, Launch(1, 2, 0), meeting_s=1.0)
        thread.join(10)
    assert not thread.is_alive()


def refuse_one(listener: multiprocessing.connection.Listener) -> None:
    with pytest.raises(multiprocessing.AuthenticationError):
        listener.accept()


def test_latency_runs_have_the_device_alone(tmp_path):
    """Two holders share the device; one that wants it alone waits until the other has finished."""
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


def test_the_environment_names_the_rank(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert Launch.from_environment() is None
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    assert Launch.from_environment() == Launch(2, 4, 0)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
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
    ],
)
def test_an_invalid_environment_is_refused(monkeypatch, changes, message):
    for name, value in (TORCHRUN | changes).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(KnobctlError, match=rf"{message}.*start with torchrun"):
        Launch.from_environment()
