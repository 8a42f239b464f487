"""A timing that falls into a slow spell of the machine is taken again; a machine slower for good is the usual one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from knobctl.precompute.pace import AGAIN_SHARE, FEWEST, PAUSES_S, REMEMBERED, Pace


class Machine:
    """A clock that goes on by sleeping, and by a second for every attempt."""

    def __init__(self) -> None:
        self.now_s, self.slept = 0.0, []
        self.pace = Pace(lambda: self.now_s, self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        self.slept.append(seconds)

    def time(self, *ms: float, kind: str = "work") -> tuple[float, int]:
        """Times something that takes those ms in turn."""
        left = iter(ms)

        def take() -> float:
            self.now_s += 1.0
            return next(left)

        timed = self.pace.steady(kind, take, ms_of=float)
        assert next(left, None) is None, "fewer attempts than expected"
        return timed


@pytest.fixture
def usual() -> Callable[[int], Machine]:
    """Returns a call that makes a machine which has timed that many requests of 10 ms."""

    def make(count: int) -> Machine:
        machine = Machine()
        for _ in range(count):
            assert machine.time(10.0) == (10.0, 0)
        return machine

    return make


def test_nothing_is_slow_before_enough_is_known(usual):
    assert usual(FEWEST - 1).time(50.0) == (50.0, 0)
    machine = usual(FEWEST)
    assert machine.time(50.0, 10.0) == (10.0, 1)
    assert machine.slept == [PAUSES_S[0]]


def test_the_fastest_of_three_attempts_is_kept(usual):
    machine = usual(40)
    assert machine.time(20.0, 14.0, 30.0) == (14.0, 2)
    assert machine.slept == list(PAUSES_S)
    assert machine.time(11.4) == (11.4, 0), "within the spread of a quiet machine"


def test_other_work_has_another_pace(usual):
    assert usual(40).time(40.0, kind="longer work") == (40.0, 0)


def test_waiting_stays_a_share_of_the_time(usual):
    machine = usual(40)

    def slow() -> float:
        machine.now_s += 1.0
        return 20.0

    attempts = [1 + machine.pace.steady("work", slow, ms_of=float)[1] for _ in range(20)]
    assert attempts[0] == 3, "there is time for some"
    assert attempts[-1] == 1, "and not for all"
    again_s = sum(machine.slept) + sum(attempts) - len(attempts)
    assert again_s <= AGAIN_SHARE * (40 + len(attempts)) + max(PAUSES_S) + 1.0


def test_a_machine_that_stays_slower_becomes_the_usual_one(usual):
    machine = usual(REMEMBERED)
    for _ in range(REMEMBERED):
        machine.pace.steady("work", lambda: 15.0, ms_of=float)
    assert machine.time(15.0) == (15.0, 0)
