"""`--workers`: every sample once, the same rows as of one process, a worker that fails, a stop that waits for parts."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from knobctl.data.cache import verify_cache
from knobctl.data.errors import KnobctlError
from knobctl.precompute.run.config import PrecomputeConfig
from knobctl.precompute.scale.launch import Interrupted, precompute
from knobctl.precompute.scale.workers import precompute_workers
from knobctl.tests.support.tiny_model import (
    SMALL_SPACE,
    assert_same_rows,
    die_of_a_signal,
    fail_with_a_bug,
    write_tiny_model,
)

pytestmark = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two workers need two cores")


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


def test_rows_are_those_of_one_process(one, tmp_path):
    config = replace(one, out=tmp_path / "cache", workers=2)
    assert precompute(config)["samples"] == 11
    assert verify_cache(config.out) == []
    assert_same_rows(config.out, one.out)
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    assert precompute(config)["samples"] == 11  # finished: nothing is begun again
    with pytest.raises(KnobctlError, match="budgets"):
        precompute(replace(config, budgets=("10", "30")))


def test_a_worker_that_fails_fails_the_run_which_then_goes_on(one, tmp_path):
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
    ("find_known", "cause"),
    [
        (fail_with_a_bug, "TypeError: an odd reason"),
        (die_of_a_signal, r"it was ended by signal 9 \(SIGKILL\): the system may have run out of memory"),
    ],
)
def test_a_worker_s_message_names_the_cause(one, tmp_path, find_known, cause):
    with pytest.raises(KnobctlError, match=rf"^worker 0 failed: {cause}"):
        precompute_workers(replace(one, out=tmp_path / "cache", workers=2), find_known)


def test_sigint_stops_every_worker_after_its_part(one, tmp_path):
    # Many timed runs: the parent looks for the signal twice a second, and parts must still be left then.
    config = replace(one, out=tmp_path / "cache", workers=2, part_samples=1, runs=30)

    def stop_after_a_part() -> None:
        end = time.monotonic() + 60
        while not list(tmp_path.glob("cache.workers/*/samples/*.parquet")) and time.monotonic() < end:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=stop_after_a_part)
    thread.start()
    try:
        with pytest.raises(Interrupted, match="Run the same command again"):
            precompute(config)
    finally:
        thread.join()
        signal.signal(signal.SIGINT, before)
    assert list(tmp_path.glob("cache.workers/*/samples/*.parquet"))
    assert not config.out.exists()
    precompute(config)
    assert_same_rows(config.out, one.out)


def test_more_workers_than_cores_are_refused(one, tmp_path):
    with pytest.raises(KnobctlError, match="more than the"):
        precompute(replace(one, out=tmp_path / "cache", workers=len(os.sched_getaffinity(0)) + 1))
    assert list(tmp_path.iterdir()) == []


def test_a_run_begun_by_one_process_is_not_divided(one, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "run.json").write_text((Path(one.out) / "run.json").read_text())
    with pytest.raises(KnobctlError, match="go on without --workers"):
        precompute(replace(one, out=tmp_path / "cache", workers=2))


def test_shards_and_workers_exclude_each_other(one):
    from knobctl.data.cache import Shard

    with pytest.raises(KnobctlError, match="both divide"):
        replace(one, workers=2, shard=Shard(0, 2))
