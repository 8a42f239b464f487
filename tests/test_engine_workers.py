"""`--workers`: every sample once, rows equal to those of one process, failing workers, and stopping after a part."""

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

import pytest

from knobctl.data.cache.verify import verify_cache
from knobctl.data.errors import KnobctlError
from knobctl.data.progress import Progress
from knobctl.precompute.run.config import PrecomputeConfig
from knobctl.precompute.run.interrupt import Interrupted
from knobctl.precompute.scale.launch import precompute
from knobctl.precompute.scale.processes import run_processes
from knobctl.tests.support.tiny_model import SMALL_SPACE, assert_same_rows, write_tiny_model
from knobctl.tests.support.worker_tasks import (
    die_of_a_signal,
    fail_with_a_bug,
    fail_with_an_error,
    run_until_stopped,
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


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> PrecomputeConfig:
    """A finished run of one process."""
    config = PrecomputeConfig(
        model=str(write_tiny_model(tmp_path_factory.mktemp("models") / "tiny", 6, native_top_k=4)),
        datasets=("easy_vqa",),
        out=tmp_path_factory.mktemp("one") / "cache",
        samples=11,
        device="cpu",
        space=SMALL_SPACE,
        budgets=("10", "20"),
        runs=1,
        importance_samples=5,
        max_new_tokens={"easy_vqa": 2},
        part_samples=2,
    )
    precompute(config)
    return config


def test_rows_equal_those_of_one_process(one, tmp_path):
    config = replace(one, out=tmp_path / "cache", workers=2)
    progress = Recorded()
    assert precompute(config, progress)["samples"] == 11
    assert progress.advanced["samples"] == 11
    assert verify_cache(config.out) == []
    assert_same_rows(config.out, one.out)
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    assert precompute(config)["samples"] == 11  # complete: nothing runs again
    with pytest.raises(KnobctlError, match="budgets"):
        precompute(replace(config, budgets=("10", "30")))


def test_a_failing_worker_fails_the_run_which_can_be_resumed(one, tmp_path):
    config = replace(one, out=tmp_path / "cache", workers=2)
    in_the_way = tmp_path / "cache.workers" / "1-of-2"
    in_the_way.parent.mkdir()
    in_the_way.write_text("in the way")
    with pytest.raises(KnobctlError, match=r"worker 1 failed: .*1-of-2"):
        precompute(config)
    assert not config.out.exists()
    in_the_way.unlink()
    precompute(config)
    assert_same_rows(config.out, one.out)


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


def test_the_parent_shows_the_progress_of_all_workers():
    shown = Recorded()
    steps: list[None] = []
    run_processes([partial(take_steps, 2), partial(take_steps, 3)], shown, lambda: steps.append(None))
    assert len(steps) == 5
    assert shown.notes == ["a warning"]  # the same in every worker, shown once


def test_sigint_stops_every_worker_after_its_part(tmp_path):
    works = [partial(run_until_stopped, tmp_path, name) for name in ("first", "second")]

    def interrupt() -> None:
        end = time.monotonic() + 60
        while len(list(tmp_path.glob("*.started"))) < 2 and time.monotonic() < end:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(Interrupted, match="Run the same command again"):
            run_processes(works)
    finally:
        thread.join()
        signal.signal(signal.SIGINT, before)
    assert {path.name for path in tmp_path.glob("*.committed")} == {"first.committed", "second.committed"}


def test_more_workers_than_cores_are_refused(one, tmp_path):
    with pytest.raises(KnobctlError, match="more than the"):
        precompute(replace(one, out=tmp_path / "cache", workers=len(os.sched_getaffinity(0)) + 1))
    assert list(tmp_path.iterdir()) == []


def test_a_run_started_by_one_process_is_not_divided(one, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "run.json").write_text((Path(one.out) / "run.json").read_text())
    with pytest.raises(KnobctlError, match="continue without --workers"):
        precompute(replace(one, out=tmp_path / "cache", workers=2))


def test_shards_and_workers_exclude_each_other(one):
    from knobctl.data.cache.run_record import Shard

    with pytest.raises(KnobctlError, match="both divide"):
        replace(one, workers=2, shard=Shard(0, 2))
