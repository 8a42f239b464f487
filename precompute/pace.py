"""Notices when the machine is slower than it was for like work, so that a timing can be taken again.

On a shared machine something else runs for seconds at a time. All runs of a sample fall into such a spell, so their
median does not leave it out; the samples timed before tell.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Hashable
from statistics import median

SLOWED = 1.15  # times the usual pace; timings of like work spread by about 4 % on a quiet machine
REMEMBERED = 64  # a machine that has become slower for good is the usual one after half as many
FEWEST = 8  # before so many nothing is usual
PAUSES_S = (1.0, 4.0)  # before the second and the third attempt, which is the last


class Pace:
    """Remembers how long work of each kind took lately."""

    def __init__(self) -> None:
        self._lately: defaultdict[Hashable, deque[float]] = defaultdict(lambda: deque(maxlen=REMEMBERED))

    def note(self, kind: Hashable, ms: float) -> None:
        """Remembers a timing that was kept."""
        self._lately[kind].append(ms)

    def is_slowed(self, kind: Hashable, ms: float) -> bool:
        """Whether that took more than 1.15 times as long as such work usually does; False while too few are known."""
        lately = self._lately.get(kind, ())
        return len(lately) >= FEWEST and ms > SLOWED * median(lately)
