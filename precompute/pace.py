"""Takes a timing again when the machine is slower than it was for like work.

On a shared machine something else runs for seconds at a time. All runs of a sample fall into such a spell, so their
median does not leave it out; the samples timed before tell.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Hashable
from statistics import median
from typing import TypeVar

SLOWED = 1.15  # times the usual pace; timings of like work spread by about 4 % on a quiet machine
REMEMBERED = 64  # a machine that has become slower for good is the usual one after half as many
FEWEST = 8  # before so many nothing is usual
PAUSES_S = (1.0, 4.0)  # before the second and the third attempt, which is the last
AGAIN_SHARE = 0.25  # of the time of first attempts, for further ones with their pauses: some machines never rest

T = TypeVar("T")


class Pace:
    """Remembers how long work of each kind took lately."""

    def __init__(
        self, clock: Callable[[], float] = time.perf_counter, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._clock, self._sleep = clock, sleep
        self._lately: defaultdict[Hashable, deque[float]] = defaultdict(lambda: deque(maxlen=REMEMBERED))
        self._first_s = self._again_s = 0.0

    def steady(self, kind: Hashable, take: Callable[[], T], ms_of: Callable[[T], float]) -> tuple[T, int]:
        """Returns a timing, and how often it was taken again: the fastest of up to three attempts.

        Args:
            kind: timings of one kind are of work that takes about as long.
            ms_of: what timings are compared by.
        """
        start = self._clock()
        kept = take()
        self._first_s += self._clock() - start
        again = 0
        while again < len(PAUSES_S) and self._is_slowed(kind, ms_of(kept)):
            start = self._clock()
            self._sleep(PAUSES_S[again])
            kept = min(kept, take(), key=ms_of)
            again += 1
            self._again_s += self._clock() - start
        self._lately[kind].append(ms_of(kept))
        return kept, again

    def _is_slowed(self, kind: Hashable, ms: float) -> bool:
        lately = self._lately[kind]
        may_wait = self._again_s <= AGAIN_SHARE * self._first_s
        return may_wait and len(lately) >= FEWEST and ms > SLOWED * median(lately)
