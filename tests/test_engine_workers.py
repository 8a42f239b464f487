"""`--workers`: each sample runs once, rows equal those of one process; failures are named; SIGINT waits for parts."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from knobctl.data.cache.verify import verify_cache
from knobctl.data.errors import KnobctlError
from knobctl.data.progress import Progress
from knobctl.precompute.run.config import PrecomputeConfig
from knobctl.precompute.run.interrupt import Interrupted
from knobctl.precompute.scale.launch import precompute
from knobctl.precompute.scale.processes import run_processes
from knobctl.precompute.scale.shares import share_config, shares_home
from knobctl.tests.support.tiny_model import assert_same_rows, run_share_until_sigint
from knobctl.tests.support.worker_tasks import (
    die_of_a_signal,
    fail_with_a_bug,
    fail_with_an_error,
    stop_as_asked,
    take_steps,
)

pytestmark = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two workers need two cores")


class Recorded(Progress):
    """Records notes and step counts."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.advanced: dict[str, int] = {}

    def note(self, text: str) -> None:
        self.notes.append(text)

    @contextmanager
    def steps(self, title: str, total: int, done: int = 0) -> Iterator[Callable[[], None]]:
        self.advanced[title] = done

        def advance() -> None:
            self.advanced[title] += 1

        yield advance
        assert self.advanced[title] == total


def two_workers(tiny_run: PrecomputeConfig, folder: Path, **changes: Any) -> PrecomputeConfig:
    """The samples of the finished run divided between two workers, each of which writes several parts."""
    return replace(tiny_run, out=folder / "cache", **{"workers": 2, "part_samples": 2, "runs": 1, **changes})


def test_rows_equal_those_of_one_process(tiny_run, tmp_path):
    config = two_workers(tiny_run, tmp_path)
    progress = Recorded()
    assert precompute(config, progress)["samples"] == 11
    assert progress.advanced["samples"] == 11
    assert verify_cache(config.out) == []
    assert_same_rows(config.out, tiny_run.out)
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    assert precompute(config)["samples"] == 11  # complete: nothing runs again
    with pytest.raises(KnobctlError, match="budgets"):
        precompute(replace(config, budgets=("10", "30")))


def test_a_failing_worker_fails_the_run_which_can_be_resumed(tiny_run, tmp_path):
    config = two_workers(tiny_run, tmp_path)
    in_the_way = tmp_path / "cache.workers" / "1-of-2"
    in_the_way.parent.mkdir()
    in_the_way.write_text("in the way")
    with pytest.raises(KnobctlError, match=r"worker 1 failed: .*1-of-2"):
        precompute(config)
    assert not config.out.exists()
    in_the_way.unlink()
    precompute(config)
    assert_same_rows(config.out, tiny_run.out)


@pytest.mark.parametrize(
    ("work", "cause"),
    [
        (fail_with_a_bug, "TypeError: an odd reason"),
        (fail_with_an_error, "an image is missing"),
        (die_of_a_signal, r"it was ended by signal 9 \(SIGKILL\): the system may have run out of memory"),
    ],
)
def test_the_message_names_the_cause_of_a_failure(work, cause):
    with pytest.raises(KnobctlError, match=rf"^worker 1 failed: {cause}"):
        run_processes([partial(take_steps, 1), work])


def test_a_failure_is_reported_before_an_interruption():
    """Otherwise a user who resumes learns of the failure only when the rest of the samples have run."""
    with pytest.raises(KnobctlError, match=r"^worker 1 failed: an image is missing"):
        run_processes([stop_as_asked, fail_with_an_error])


def test_the_parent_shows_the_progress_of_all_workers():
    shown = Recorded()
    steps: list[None] = []
    run_processes([partial(take_steps, 2), partial(take_steps, 3)], shown, lambda: steps.append(None))
    assert len(steps) == 5
    assert shown.notes == ["a warning"]  # the same in every worker, shown once


def test_sigint_stops_every_worker_after_its_part(tiny_run, tmp_path):
    """Each worker is inside its first part until the signal reaches it, then commits that part and no other."""
    config = two_workers(tiny_run, tmp_path)
    home = shares_home(config.out, "workers")

    def interrupt() -> None:
        end = time.monotonic() + 60
        while len(list(home.glob("held-*"))) < 2 and time.monotonic() < end:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(Interrupted, match="Run the same command again"):
            run_processes([partial(run_share_until_sigint, share_config(config, home, index, 2)) for index in range(2)])
    finally:
        thread.join()
        signal.signal(signal.SIGINT, before)
    assert sorted(path.parent.parent.name for path in home.glob("*/samples/*.parquet")) == ["0-of-2", "1-of-2"]
    assert not config.out.exists()
    precompute(config)
    assert_same_rows(config.out, tiny_run.out)


def test_more_workers_than_cores_are_refused(tiny_run, tmp_path):
    with pytest.raises(KnobctlError, match="more than the"):
        precompute(two_workers(tiny_run, tmp_path, workers=len(os.sched_getaffinity(0)) + 1))
    assert list(tmp_path.iterdir()) == []


def test_a_run_started_by_one_process_is_not_divided(tiny_run, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "run.json").write_text((tiny_run.out / "run.json").read_text())
    with pytest.raises(KnobctlError, match="continue without --workers"):
        precompute(two_workers(tiny_run, tmp_path))


def test_shards_and_workers_exclude_each_other(tiny_run):
    from knobctl.data.cache.run_record import Shard

    with pytest.raises(KnobctlError, match="both divide"):
        replace(tiny_run, workers=2, shard=Shard(0, 2))
