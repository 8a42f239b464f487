"""Ranks of torchrun: each sample runs once, rows do not depend on their number; ranks that fail or never start."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from knobctl.data.cache.reader import open_cache
from knobctl.data.cache.verify import verify_cache
from knobctl.data.errors import CacheError, KnobctlError
from knobctl.data.files.lock import Holder
from knobctl.precompute.latency.device_lock import SharedDevice
from knobctl.precompute.run.config import PrecomputeConfig
from knobctl.precompute.scale.heartbeat import BEAT_S, LOST_S, MEETING_S, Heartbeat, PeerFailed, Peers, heartbeat_path
from knobctl.precompute.scale.launch import precompute
from knobctl.precompute.scale.ranks import Launch
from knobctl.tests.support.tiny_model import assert_same_rows, run_rank

# The server imports once; the processes that it forks need not import anything.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["knobctl.tests.support.tiny_model"])
SAMPLES = 11
TORCHRUN = {"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}


@pytest.fixture
def config(tiny_run, tmp_path) -> PrecomputeConfig:
    """The samples of the finished run, in parts so small that each rank has several."""
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
    if count == 2:  # complete: the same command runs nothing, another request is refused
        assert [samples for samples, _ in launch(config, count).values()] == [[], []]
        other = launch(replace(config, budgets=("10", "30")), count)
        assert all("budgets" in what for _, what in other.values())


def test_a_rank_that_dies_fails_the_run_whose_resumption_runs_only_the_rest(config, tiny_run):
    reports = launch(config, 2, dies=(1, 4))  # in its second part of two
    assert "rank 1 of 2 is lost" in reports[0][1]
    assert "Start the same command again" in reports[0][1]
    assert not config.out.exists()
    reports = launch(config, 2)
    assert reports[0][0] == []  # the first rank had completed its share
    assert len(reports[1][0]) == 3  # the second had committed two of its five
    assert_same_rows(config.out, tiny_run.out)


def test_the_error_of_one_rank_is_reported_by_all(config, tmp_path):
    (tmp_path / "cache.ranks").mkdir()
    (tmp_path / "cache.ranks" / "1-of-2").write_text("in the way")
    reports = launch(config, 2)
    assert "1-of-2" in reports[1][1]
    assert "rank 1 of 2 failed" in reports[0][1]


def test_more_ranks_than_samples_are_refused_before_any_work(config, tmp_path):
    reports = launch(replace(config, samples=1), 2)
    assert all("1 samples cannot be divided among 2" in what for _, what in reports.values())
    assert not any(path.is_dir() for path in (tmp_path / "cache.ranks").iterdir())


@pytest.mark.parametrize("change", [{"shard": "0/2"}, {"workers": 2}])
def test_ranks_exclude_shards_and_workers(config, monkeypatch, change):
    from knobctl.data.cache.run_record import Shard

    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    changes = {"shard": Shard(0, 2)} if "shard" in change else change
    with pytest.raises(KnobctlError, match="torchrun both divide the samples"):
        precompute(replace(config, **changes))


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def peer_file(home: Path, rank: int, *, count: int = 2, error: str | None = None, **holder: object) -> Path:
    """Writes a rank's file: of this process, or with other fields of its holder."""
    record = {**vars(Holder.this()), **holder, "error": error}
    path = heartbeat_path(home, rank, count)
    path.write_text(json.dumps(record))
    return path


ELSEWHERE = {"host": "another-host", "pid": 7, "started": 1.0}
DEAD = {"pid": os.getpid(), "started": 1.0}  # another process had this pid earlier


def peers_of(home: Path, clock: Clock, rank: int = 0, count: int = 2) -> Peers:
    return Peers(home, rank, count, poll_s=0.0, clock=clock)


def test_ranks_meet_when_all_have_started(tmp_path):
    with Heartbeat(tmp_path, 1, 2):
        peers_of(tmp_path, Clock()).meet()


def test_a_rank_that_never_starts_fails_the_run_within_five_minutes(tmp_path):
    assert MEETING_S < 300
    clock = iter(range(0, 10_000, 100))
    peers = Peers(tmp_path, 0, 3, poll_s=0.0, clock=lambda: float(next(clock)))
    with pytest.raises(KnobctlError, match=r"rank 1 and rank 2 of 3 did not start within 240 s.*same time"):
        peers.meet()


@pytest.mark.parametrize("holder", [ELSEWHERE, DEAD])
def test_the_file_of_an_earlier_launch_does_not_count(tmp_path, holder):
    peer_file(tmp_path, 1, error="rank 1 of 2 failed: the disk is full", **holder)
    peers = peers_of(tmp_path, Clock())
    with pytest.raises(KnobctlError, match=r"did not start.*An earlier message there: .*the disk is full"):
        peers.meet(within_s=-1.0)


def test_a_file_of_another_host_counts_once_it_changes(tmp_path):
    path = peer_file(tmp_path, 1, **ELSEWHERE)
    peers = peers_of(tmp_path, Clock())
    os.utime(path, (1, 1))
    peers.meet(within_s=-1.0)


def test_a_rank_on_this_host_is_lost_when_its_process_is_gone(tmp_path):
    peer_file(tmp_path, 1)
    peers = peers_of(tmp_path, Clock())
    peers.meet()
    peer_file(tmp_path, 1, **DEAD)
    with pytest.raises(PeerFailed, match=r"rank 1 of 2 is lost: its process \d+ .*Start the same command again"):
        peers.wait_for([tmp_path / "cache.json"])


def test_a_rank_elsewhere_is_lost_when_its_file_does_not_change_for_a_minute(tmp_path):
    assert LOST_S == 60.0
    assert BEAT_S < LOST_S / 3
    clock = Clock()
    peers = peers_of(tmp_path, clock)
    path = peer_file(tmp_path, 1, **ELSEWHERE)
    peers.meet()
    clock.now = 50.0
    os.utime(path, (1, 1))  # a clock that is wrong does not matter
    (tmp_path / "done").touch()
    peers.wait_for([tmp_path / "done"])
    clock.now = 109.0
    assert peers.problem() is None
    clock.now = 111.0
    with pytest.raises(PeerFailed, match=r"rank 1 of 2 \(process 7 on another-host\) is lost: .* 60 s.*same command"):
        peers.wait_for([tmp_path / "cache.json"])


def test_an_error_is_passed_on_in_the_words_of_the_rank_that_had_it(tmp_path):
    peers = {rank: peers_of(tmp_path, Clock(), rank, 3) for rank in range(3)}
    with pytest.raises(CacheError), Heartbeat(tmp_path, 2, 3):
        raise CacheError("the disk is full.")
    with pytest.raises(PeerFailed) as first, Heartbeat(tmp_path, 0, 3):
        peers[0].meet()
    assert str(first.value).startswith("rank 2 of 3 failed: the disk is full. Start the same")
    with pytest.raises(PeerFailed) as second:
        peers[1].wait_for([tmp_path / "cache.json"])
    assert str(second.value) == str(first.value)


def test_files_that_a_rank_wrote_before_it_ended_are_seen(tmp_path):
    peers = peers_of(tmp_path, Clock())
    peer_file(tmp_path, 1, **DEAD)
    (tmp_path / "cache.json").touch()
    peers.wait_for([tmp_path / "cache.json"])


def test_a_heartbeat_keeps_its_file_fresh(tmp_path):
    with Heartbeat(tmp_path, 0, 2, beat_s=0.01) as heartbeat:
        os.utime(heartbeat.path, (1, 1))
        end = time.monotonic() + 10
        while heartbeat.path.stat().st_mtime < 2 and time.monotonic() < end:
            time.sleep(0.01)
        assert heartbeat.path.stat().st_mtime > 2
        heartbeat.path.unlink()  # the merge removes it; that is not an error


@pytest.mark.parametrize("text", ["[]", '{"host": "a", "pid": -1}', '{"host": 3, "pid": 7}', "{"])
def test_a_file_of_another_program_is_refused(tmp_path, text):
    heartbeat_path(tmp_path, 1, 2).write_text(text)
    with pytest.raises(CacheError, match="rank-1-of-2"):
        peers_of(tmp_path, Clock())


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
