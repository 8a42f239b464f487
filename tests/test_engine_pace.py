"""Timings in a slow spell of the machine are detected; a lasting slowdown becomes the normal pace."""

from __future__ import annotations

from knobctl.precompute.latency.slow_spells import AGAIN_SHARE, FEWEST, REMEMBERED, Pace


def pace_after(count: int, ms: float = 10.0) -> Pace:
    """Returns a pace that has recorded `count` timings, none of them slow."""
    pace = Pace()
    assert not any(pace.note("work", ms) for _ in range(count))
    return pace


def test_no_timing_counts_as_slow_before_enough_are_recorded():
    assert not pace_after(FEWEST - 1).note("work", 50.0)
    assert pace_after(FEWEST).note("work", 50.0)


def test_normal_variation_does_not_count_as_slow():
    pace = pace_after(40)
    assert not pace.is_slowed("work", 11.4)
    assert pace.is_slowed("work", 11.6)


def test_each_kind_of_work_has_its_own_pace():
    assert not pace_after(40).note("longer work", 40.0)


def test_retakes_are_limited_to_a_share_of_the_first_timings():
    pace = pace_after(40)
    assert [pace.may_retake() for _ in range(12)] == [True] * int(AGAIN_SHARE * 40) + [False] * 2
    pace.note("work", 10.0)
    assert not pace.may_retake()
    for _ in range(3):
        pace.note("work", 10.0)
    assert pace.may_retake()


def test_a_lasting_slowdown_becomes_the_normal_pace():
    pace = pace_after(REMEMBERED)
    told = [pace.note("work", 15.0) for _ in range(REMEMBERED)]
    assert told[0]
    assert not told[-1]
    assert not pace.note("work", 15.0)
