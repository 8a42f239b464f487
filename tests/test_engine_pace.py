"""A timing that falls into a slow spell of the machine is taken again; a machine slower for good is the usual one."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest

from knobctl.precompute import sample_run
from knobctl.precompute.blockwise import BlockTimes
from knobctl.precompute.ledger import Ledger
from knobctl.precompute.pace import FEWEST, PAUSES_S, REMEMBERED, Pace
from knobctl.precompute.sample_run import MeasureConfig, SampleRunner

PROMPT = SimpleNamespace(vision_tokens=17, text_tokens=9)


def block_times(ms: float) -> BlockTimes:
    """Two blocks and one top-k: vision takes all of the time."""
    nothing = np.zeros((1, 2, 1))
    return BlockTimes((4,), np.array([ms]), np.zeros(1), nothing, np.zeros((1, 4)), np.zeros((1, 4, 2, 1)))


@pytest.fixture
def timed(monkeypatch):
    """Returns a call that times one prompt, the machine taking the given ms in turn; and what was slept."""
    slept: list[float] = []
    monkeypatch.setattr(sample_run.time, "sleep", slept.append)
    knobs = SimpleNamespace(model=SimpleNamespace(device=SimpleNamespace(type="cpu")), native_top_k=4)
    runner = SampleRunner(knobs, MeasureConfig(runs=1), Ledger())

    def time_prompt(*ms: float) -> float:
        left = iter(ms)
        monkeypatch.setattr(sample_run, "measure_blocks", lambda *_, **__: (block_times(next(left)), []))
        times, _ = runner._block_times(PROMPT, random.Random(0), [])
        assert next(left, None) is None, "fewer attempts than expected"
        return times.whole_model_ms(4)

    return time_prompt, slept, runner.ledger


def test_nothing_is_slow_before_enough_is_known(timed):
    time_prompt, slept, ledger = timed
    for ms in (10.0, 50.0, *[10.0] * (FEWEST - 2)):
        assert time_prompt(ms) == ms
    assert ledger.counts["timings_retaken"] == 0
    assert time_prompt(30.0, 10.0) == 10.0
    assert ledger.counts["timings_retaken"] == 1
    assert [pause for pause in slept if pause] == [PAUSES_S[0]]


def test_the_fastest_of_three_attempts_is_kept(timed):
    time_prompt, slept, ledger = timed
    for _ in range(FEWEST):
        time_prompt(10.0)
    assert time_prompt(20.0, 14.0, 30.0) == 14.0
    assert time_prompt(11.4) == 11.4  # within the spread of a quiet machine
    assert ledger.counts["timings_retaken"] == 2
    assert [pause for pause in slept if pause] == list(PAUSES_S)


def test_other_work_has_another_pace():
    pace = Pace()
    for _ in range(FEWEST):
        pace.note("short", 10.0)
    assert pace.is_slowed("short", 12.0)
    assert not pace.is_slowed("long", 40.0)


def test_a_machine_that_stays_slower_becomes_the_usual_one():
    pace = Pace()
    for _ in range(REMEMBERED):
        pace.note("work", 10.0)
    for _ in range(REMEMBERED // 2 + 1):
        pace.note("work", 15.0)
    assert not pace.is_slowed("work", 15.0)
