"""Tells which timings fell into a slow spell of the machine, so that they are taken again when it is over.

On a shared machine something else runs for 10 to 100 seconds at a time. All runs of a sample fall into such a spell,
so their median does not leave it out; the samples timed before tell. An attempt right after falls into it as well:
timings are put off until the part's other samples are done.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Hashable
from statistics import median

SLOWED = 1.15  # times the usual pace; timings of like work spread by about 4 % on a quiet machine
REMEMBERED = 64  # a machine that has become slower for good is the usual one after half as many
FEWEST = 8  # before so many nothing is usual
AGAIN_SHARE = 0.25  # of all first timings, for further ones: some machines never rest


class Pace:
    """Remembers how long work of each kind took lately."""

    def __init__(self) -> None:
        self._lately: defaultdict[Hashable, deque[float]] = defaultdict(lambda: deque(maxlen=REMEMBERED))
        self._first = self._again = 0

    def note(self, kind: Hashable, ms: float) -> bool:
        """Counts a first timing; returns whether it is to be taken again.

        Args:
            kind: timings of one kind are of work that takes about as long.
        """
        self._first += 1
        slowed = self.is_slowed(kind, ms)
        self._lately[kind].append(ms)
        return slowed

    def is_slowed(self, kind: Hashable, ms: float) -> bool:
        """Returns whether `ms` is far above what work of this kind took lately."""
        lately = self._lately[kind]
        return len(lately) >= FEWEST and ms > SLOWED * median(lately)

    def may_retake(self) -> bool:
        """Counts one more attempt, or returns False: they have taken their share."""
        if self._again + 1 > AGAIN_SHARE * self._first:
            return False
        self._again += 1
        return True
