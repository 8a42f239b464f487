"""A timing that falls into a slow spell of the machine is told apart; a machine slower for good is the usual one."""

from __future__ import annotations

from knobctl.precompute.latency.slow_spells import AGAIN_SHARE, FEWEST, REMEMBERED, Pace


def pace_after(count: int, ms: float = 10.0) -> Pace:
    """A pace that has seen that many timings, none of them slow."""
    pace = Pace()
    assert not any(pace.note("work", ms) for _ in range(count))
    return pace


def test_nothing_is_slow_before_enough_is_known():
    assert not pace_after(FEWEST - 1).note("work", 50.0)
    assert pace_after(FEWEST).note("work", 50.0)


def test_the_spread_of_a_quiet_machine_is_not_slow():
    pace = pace_after(40)
    assert not pace.is_slowed("work", 11.4)
    assert pace.is_slowed("work", 11.6)


def test_other_work_has_another_pace():
    assert not pace_after(40).note("longer work", 40.0)


def test_further_attempts_stay_a_share_of_the_first():
    pace = pace_after(40)
    assert [pace.may_retake() for _ in range(12)] == [True] * int(AGAIN_SHARE * 40) + [False] * 2
    pace.note("work", 10.0)
    assert not pace.may_retake()
    for _ in range(3):
        pace.note("work", 10.0)
    assert pace.may_retake()


def test_a_machine_that_stays_slower_becomes_the_usual_one():
    pace = pace_after(REMEMBERED)
    told = [pace.note("work", 15.0) for _ in range(REMEMBERED)]
    assert told[0]
    assert not told[-1]
    assert not pace.note("work", 15.0)
