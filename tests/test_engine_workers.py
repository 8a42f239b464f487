"""`--workers`: rows equal those of one process; processes that are killed, stalled or orphaned; SIGINT."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from knobctl.data.cache.reader import open_cache
from knobctl.data.cache.verify import verify_cache, verify_parts
from knobctl.data.errors import KnobctlError
from knobctl.precompute.run.config import PrecomputeConfig
from knobctl.precompute.scale.launch import Interrupted, precompute
from knobctl.tests.support.recorded_progress import RecordedProgress
from knobctl.tests.support.tiny_model import assert_same_rows

pytestmark = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two workers need two cores")

SAMPLES = 11


def two_workers(tiny_run: PrecomputeConfig, folder: Path, **changes: Any) -> PrecomputeConfig:
    """The samples of the finished run divided between two workers, each of which runs several parts."""
    return replace(tiny_run, out=folder / "cache", **{"workers": 2, "part_samples": 2, "runs": 1, **changes})


def signal_one(number: signal.Signals, at: int) -> RecordedProgress:
    """Progress that sends a signal to one of the worker processes when this many samples are done."""

    def send(done: int) -> None:
        if done == at:
            os.kill(multiprocessing.active_children()[0].pid or 0, number)

    return RecordedProgress(send)


def test_rows_equal_those_of_one_process(tiny_run, tmp_path):
    config = two_workers(tiny_run, tmp_path)
    progress = RecordedProgress()
    assert precompute(config, progress)["samples"] == SAMPLES
    assert progress.done[-1] == (SAMPLES, SAMPLES)
    assert verify_cache(config.out) == []
    assert_same_rows(config.out, tiny_run.out)
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    assert multiprocessing.active_children() == []
    assert precompute(config)["samples"] == SAMPLES  # complete: nothing runs again
    with pytest.raises(KnobctlError, match="budgets"):
        precompute(replace(config, budgets=("10", "30")))


def test_a_killed_worker_is_replaced(tiny_run, tmp_path):
    config = two_workers(tiny_run, tmp_path)
    progress = signal_one(signal.SIGKILL, at=3)
    precompute(config, progress)
    assert any("it was ended by signal 9 (SIGKILL): the system may have run out" in note for note in progress.notes)
    assert progress.done[-1] == (SAMPLES, SAMPLES)
    assert_same_rows(config.out, tiny_run.out)


def test_a_stalled_worker_is_replaced(tiny_run, tmp_path):
    config = two_workers(tiny_run, tmp_path, stall_timeout=6.0)
    progress = signal_one(signal.SIGSTOP, at=3)
    precompute(config, progress)
    assert any("it made no progress for 6 s" in note for note in progress.notes)
    assert multiprocessing.active_children() == []
    assert_same_rows(config.out, tiny_run.out)


def test_a_failing_worker_fails_the_run(tiny_run, tmp_path):
    config = two_workers(tiny_run, tmp_path, model=str(tmp_path / "nowhere"))
    with pytest.raises(KnobctlError, match=r"worker \d failed: .*nowhere"):
        precompute(config)
    assert not config.out.exists()
    assert multiprocessing.active_children() == []


def test_sigint_stops_the_run_after_the_current_parts(tiny_run, tmp_path):
    config = two_workers(tiny_run, tmp_path)
    progress = RecordedProgress(lambda done: os.kill(os.getpid(), signal.SIGINT) if done == 1 else None)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(Interrupted, match="Run the same command again"):
            precompute(config, progress)
    finally:
        signal.signal(signal.SIGINT, before)
    assert 1 <= len(list((config.out / "samples").iterdir())) <= 2
    assert verify_parts(config.out) == []
    precompute(replace(config, workers=None))
    assert_same_rows(config.out, tiny_run.out)


def test_workers_end_with_a_killed_parent_and_the_run_is_resumed(tiny_run, tmp_path):
    config = two_workers(tiny_run, tmp_path)
    code = (
        "import pickle, sys; from knobctl.precompute.scale.launch import precompute\n"
        "if __name__ == '__main__': precompute(pickle.loads(bytes.fromhex(sys.argv[1])))"
    )
    import pickle

    program = tmp_path / "program.py"
    program.write_text(code)
    with subprocess.Popen([sys.executable, str(program), pickle.dumps(config).hex()]) as parent:
        end = time.monotonic() + 60
        while not list(config.out.glob("samples/part-*")) and time.monotonic() < end:
            time.sleep(0.01)
        children = psutil.Process(parent.pid).children(recursive=True)
        parent.kill()
    assert len(children) >= 3  # two workers and the server that forks them
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []
    precompute(config)
    assert verify_cache(config.out) == []
    assert len(open_cache(config.out).sample_ids) == SAMPLES
    assert_same_rows(config.out, tiny_run.out)


def test_more_workers_than_cores_are_refused(tiny_run, tmp_path):
    with pytest.raises(KnobctlError, match="more than the"):
        precompute(two_workers(tiny_run, tmp_path, workers=len(os.sched_getaffinity(0)) + 1))
    assert list(tmp_path.iterdir()) == []
