"""Parts are handed out, committed once and given to another worker when one is lost, wherever the workers run."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from knobctl.data.cache.reader import open_cache
from knobctl.data.cache.verify import verify_cache, verify_parts
from knobctl.data.errors import CacheError, CacheMismatch, KnobctlError
from knobctl.data.files.atomic import Disk
from knobctl.data.files.lock import DirectoryLock
from knobctl.precompute.run.config import PrecomputeConfig
from knobctl.precompute.run.shard import Part
from knobctl.precompute.scale.coordinator import LOSSES, Coordinator
from knobctl.precompute.scale.launch import Interrupted, precompute
from knobctl.precompute.scale.part_queue import PartQueue
from knobctl.precompute.scale.worker import Message, PartWorker, Place, answer, own_cores, own_device
from knobctl.tests.support.faulty_pool import FaultyPool
from knobctl.tests.support.recorded_progress import RecordedProgress
from knobctl.tests.support.tiny_model import assert_same_rows

SAMPLES = 11


@pytest.fixture
def config(tiny_run: PrecomputeConfig, tmp_path: Path) -> PrecomputeConfig:
    """The samples of the finished run, in parts of two."""
    return replace(tiny_run, out=tmp_path / "cache", part_samples=2, runs=1)


def lost(*numbers: int, reason: str = "it is gone", counts: bool = True):
    """A fault: the calls of `run` with these numbers, counted from 0 over all workers, lose their worker."""
    calls = count()

    def fault(_worker: int, call: tuple[Any, ...]) -> Message | None:
        return Message("lost", (reason, counts)) if call[0] == "run" and next(calls) in numbers else None

    return fault


@pytest.mark.parametrize("workers", [1, 2, 5, 20])
def test_rows_do_not_depend_on_the_number_of_workers(config, tiny_run, workers):
    pool = FaultyPool(config, workers)
    assert Coordinator(config, pool).run()["samples"] == SAMPLES
    handed_out = [sample for _, part in pool.parts for sample in part]
    assert sorted(handed_out) == sorted(open_cache(tiny_run.out).sample_ids)
    assert all(len(part) <= 2 for _, part in pool.parts)
    assert verify_cache(config.out) == []
    assert_same_rows(config.out, tiny_run.out)


def test_parts_shrink_so_that_workers_end_together():
    queue = PartQueue([str(number) for number in range(40)], part_samples=16)
    sizes = []
    while part := queue.next(workers=2):
        sizes.append(len(part))
    assert sizes == [10, 8, 6, 4, 3, 3, 2, 1, 1, 1, 1]
    alone = PartQueue([str(number) for number in range(40)], part_samples=16)
    assert [len(alone.next(1) or ()) for _ in range(4)] == [16, 16, 8, 0]


def test_the_part_of_a_lost_worker_goes_to_another_one(config, tiny_run):
    pool, progress = FaultyPool(config, 2, lost(1)), RecordedProgress()
    Coordinator(config, pool, progress).run()
    (loser, part), *later = pool.parts[1:]
    assert [worker for worker, other in later if other == part] not in ([], [loser])
    assert progress.done[-1] == (SAMPLES, SAMPLES)
    assert any("worker 1 is lost: it is gone" in note for note in progress.notes)
    assert_same_rows(config.out, tiny_run.out)


def test_samples_that_lose_three_workers_stop_the_run_which_names_them(config):
    culprit: list[str] = []

    def fault(_worker: int, call: tuple[Any, ...]) -> Message | None:
        if call[0] != "run":
            return None
        culprit[:] = culprit or call[1]
        return Message("lost", ("it ran out of memory", True)) if culprit[0] in call[1] else None

    pool = FaultyPool(config, 2, fault)
    with pytest.raises(KnobctlError) as error:
        Coordinator(config, pool).run()
    assert ", ".join(culprit) in str(error.value)
    assert "it ran out of memory" in str(error.value)
    assert len([part for _, part in pool.parts if list(part) == culprit]) == LOSSES
    assert Coordinator(config, FaultyPool(config, 1)).run()["samples"] == SAMPLES  # resumes


def test_lost_nodes_do_not_count_against_the_samples_that_ran_there(config, tiny_run):
    Coordinator(config, FaultyPool(config, 1, lost(*range(2 * LOSSES), counts=False))).run()
    assert_same_rows(config.out, tiny_run.out)


def test_workers_that_are_lost_before_their_first_part_stop_the_run(config):
    def fault(_worker: int, call: tuple[Any, ...]) -> Message | None:
        return Message("lost", ("killed while loading", True)) if call[0] == "load" else None

    with pytest.raises(KnobctlError, match="3 workers were lost before they ran a part: killed while loading"):
        Coordinator(config, FaultyPool(config, 2, fault)).run()
    assert not config.out.exists()


def test_a_worker_without_progress_is_ended_and_replaced(config, tiny_run):
    config = replace(config, stall_timeout=50.0)
    clock, stalled = count(), []

    def fault(worker: int, call: tuple[Any, ...]) -> Message | None:
        if call[0] != "run" or stalled:
            return None
        stalled.append(worker)
        return Message("silence")

    pool, progress = FaultyPool(config, 2, fault), RecordedProgress()
    Coordinator(config, pool, progress, clock=lambda: float(next(clock))).run()
    assert pool.killed == stalled
    assert any("no progress for 50 s (--stall-timeout)" in note for note in progress.notes)
    assert_same_rows(config.out, tiny_run.out)


def test_a_commit_that_takes_longer_than_the_stall_timeout_ends_no_worker(config, tiny_run, monkeypatch):
    """While the coordinator waits for the disk, messages of the other workers stay unread."""
    now, commit = [0.0], Part.commit

    def slow_commit(*arguments: Any) -> None:
        commit(*arguments)
        now[0] += 1000.0

    monkeypatch.setattr(Part, "commit", slow_commit)
    pool = FaultyPool(replace(config, stall_timeout=50.0), 2)
    Coordinator(replace(config, stall_timeout=50.0), pool, clock=lambda: now[0]).run()
    assert pool.killed == []
    assert_same_rows(config.out, tiny_run.out)


def test_long_runs_report_their_state(config):
    clock, progress = count(step=20), RecordedProgress()
    Coordinator(config, FaultyPool(config, 2, lost(0)), progress, clock=lambda: float(next(clock))).run()
    status = [note for note in progress.notes if "parts committed" in note]
    assert any(f"of {SAMPLES} samples; 2 workers, 1 lost; " in note for note in status)
    assert any(note.endswith(" left") and ":" in note for note in status)


def test_a_failure_stops_the_run_after_the_current_parts(config, tiny_run):
    calls = count()

    def fault(_worker: int, call: tuple[Any, ...]) -> Message | None:
        return Message("failed", "an image is missing.") if call[0] == "run" and next(calls) == 0 else None

    with pytest.raises(KnobctlError, match=r"^worker 0 failed: an image is missing\.$"):
        Coordinator(config, FaultyPool(config, 2, fault)).run()
    assert len(list((config.out / "samples").iterdir())) == 1  # the other worker's part
    precompute(config)
    assert_same_rows(config.out, tiny_run.out)


def test_workers_on_another_kind_of_device_are_refused_and_both_are_named(config):
    def fault(_worker: int, call: tuple[Any, ...]) -> Message | None:
        if call[0] != "begin":
            return None
        record = json.loads((config.out / "run.json").read_text())["run"]
        record["request"]["device"] = {**record["request"]["device"], "name": "H100"}
        return Message("result", record)

    with pytest.raises(CacheMismatch, match=r'differs from .*request\.device\.name: ".*" there, "H100" now'):
        Coordinator(config, FaultyPool(config, 2, fault)).run()


def test_workers_with_another_version_are_refused(config):
    pool = FaultyPool(config, 2, place=lambda _number: Place(host="far", version="0.0.1"))
    with pytest.raises(KnobctlError, match=r"on far has knobctl 0\.0\.1, but this is"):
        Coordinator(config, pool).run()


class FullDisk(Disk):
    """Takes so many files, then is full."""

    def __init__(self, files: int) -> None:
        self.files = files

    def write(self, descriptor: int, data: memoryview) -> int:
        self.files -= 1
        if self.files < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(descriptor, data)


def test_a_full_disk_loses_no_committed_part(config, tiny_run):
    with pytest.raises(CacheError, match=r"the disk is full.*run the same command again to resume"):
        Coordinator(config, FaultyPool(config, 2), disk=FullDisk(files=1 + 3 + 2)).run()  # run.json, a part, two files
    assert [path.name for path in (config.out / "samples").iterdir()] == ["part-0000-000000.parquet"]
    assert verify_parts(config.out) == []
    precompute(config)
    assert_same_rows(config.out, tiny_run.out)


def test_workers_need_not_see_the_directory_of_the_cache(config, tiny_run):
    elsewhere = replace(config, out=Path("/dev/null/not-shared"))
    Coordinator(config, FaultyPool(elsewhere, 2)).run()
    assert_same_rows(config.out, tiny_run.out)


def test_a_directory_has_one_coordinator_at_a_time(config):
    config.out.mkdir()
    pool = FaultyPool(config, 1)
    with DirectoryLock(config.out), pytest.raises(CacheError, match="is being written by"):
        Coordinator(config, pool).run()
    assert pool.parts == []


def test_one_process_continues_what_several_have_begun_and_the_other_way_round(config, tiny_run):
    def stop(_worker: int, call: tuple[Any, ...]) -> Message | None:
        return Message("failed", "enough") if call[0] == "run" and len(call[1]) == 1 else None

    with pytest.raises(KnobctlError, match="enough"):
        Coordinator(config, FaultyPool(config, 2, stop)).run()
    done = len(list((config.out / "samples").iterdir()))
    assert done > 1
    precompute(replace(config, part_samples=16))
    assert len(list((config.out / "samples").iterdir())) == done + 1
    assert_same_rows(config.out, tiny_run.out)


def test_shares_that_an_earlier_version_has_left_are_continued(config, tiny_run, tmp_path):
    """It wrote each process's share as a shard beside the cache."""
    first = tmp_path / "cache.workers" / "0-of-2"
    precompute(replace(config, out=first, shard=_shard(0)))
    interrupted = replace(config, out=first.with_name("1-of-2"), shard=_shard(1), like=first)

    def stop(_worker: int, call: tuple[Any, ...]) -> Message | None:
        return Message("failed", "enough") if call[0] == "run" and len(call[1]) == 1 else None

    with pytest.raises(KnobctlError, match="enough"):
        Coordinator(interrupted, FaultyPool(interrupted, 1, stop)).run()
    progress = RecordedProgress()
    precompute(config, progress)
    assert progress.done == [(SAMPLES, SAMPLES)]  # the other ten were there
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    assert verify_cache(config.out) == []
    assert json.loads((config.out / "cache.json").read_text())["execution"]["counts"]["samples"] == SAMPLES
    assert_same_rows(config.out, tiny_run.out)


def test_shares_of_another_run_are_not_mixed_in(config, tmp_path):
    precompute(replace(config, out=tmp_path / "cache.ranks" / "0-of-2", shard=_shard(0)))
    with pytest.raises(CacheMismatch, match=r"0-of-2 was started with other parameters: .*seed"):
        precompute(replace(config, seed=7))


def _shard(index: int):
    from knobctl.data.cache.run_record import Shard

    return Shard(index, 2)


def test_a_shard_may_have_several_workers(config, tiny_run, tmp_path):
    from knobctl.data.cache.merge import merge_caches

    first = replace(config, out=tmp_path / "0", shard=_shard(0))
    second = replace(config, out=tmp_path / "1", shard=_shard(1), like=first.out)
    for one in (first, second):
        Coordinator(one, FaultyPool(one, 2)).run()
    merge_caches([first.out, second.out], config.out)
    assert_same_rows(config.out, tiny_run.out)


def test_each_worker_has_its_own_device_or_cores():
    assert [own_device("cuda", slot, lambda: 4) for slot in range(6)] == [f"cuda:{n}" for n in (0, 1, 2, 3, 0, 1)]
    assert own_device("cuda:2", 1, lambda: 4) == "cuda:2"
    assert own_device("cpu", 1, lambda: 4) == "cpu"
    assert [own_cores(range(8), slot, 2, 1) for slot in range(2)] == [range(0, 8, 2), range(1, 8, 2)]
    assert [own_cores(range(8), slot, None, 4) for slot in range(3)] == [range(0, 8, 2), range(1, 8, 2), range(0, 8, 2)]
    assert [own_cores([3, 5], slot, 3, 1) for slot in range(3)] == [[3], [5], [3]]


def test_the_message_of_a_failure_names_its_cause(config, caplog):
    class Failing(PartWorker):
        def run(self, error, _progress):
            raise error

    messages: list[Message] = []
    answer(Failing(config), ("run", KnobctlError("an image is missing.")), messages.append)
    answer(Failing(config), ("run", TypeError("an odd\nreason")), messages.append)
    assert messages == [("failed", "an image is missing."), ("failed", "TypeError: an odd reason")]
    assert "Traceback" in caplog.text  # for the bug only
    assert caplog.text.count("Traceback") == 1


def test_sigint_lets_current_parts_be_committed(config, tiny_run):
    import os
    import signal

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    progress = RecordedProgress(on_step=lambda done: os.kill(os.getpid(), signal.SIGINT) if done == 1 else None)
    try:
        with pytest.raises(Interrupted, match=rf"4 of {SAMPLES} samples .*Run the same command again"):
            Coordinator(config, FaultyPool(config, 2), progress).run()
    finally:
        signal.signal(signal.SIGINT, before)
    precompute(config)
    assert_same_rows(config.out, tiny_run.out)
