"""Detects timings taken while the machine was temporarily slow, so that they can be repeated later.

On a shared machine other work runs for 10 to 100 seconds at a time. Such a spell covers all runs of a sample, so their
median does not exclude it; comparing with earlier samples does. An immediate repetition would fall into the same spell,
so timings are repeated after the part's other samples.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Hashable
from statistics import median

SLOWED = 1.15  # times the recent median; on an idle machine timings of similar work vary by about 4 %
REMEMBERED = 64  # timings per kind; a permanent slowdown moves the median after half as many
RETAKES = 2  # of a timing at most
FEWEST = 8  # with fewer timings there is no reference
AGAIN_SHARE = 0.25  # repetitions per first timing at most: some machines are always busy


class Pace:
    """Recent timings of each kind of work."""

    def __init__(self) -> None:
        self._lately: defaultdict[Hashable, deque[float]] = defaultdict(lambda: deque(maxlen=REMEMBERED))
        self._first = self._again = 0

    def note(self, kind: Hashable, ms: float) -> bool:
        """Records a first timing; returns whether it should be repeated.

        Args:
            kind: groups timings of work that takes about equally long.
        """
        self._first += 1
        slowed = self.is_slowed(kind, ms)
        self._lately[kind].append(ms)
        return slowed

    def is_slowed(self, kind: Hashable, ms: float) -> bool:
        """Returns whether `ms` is far above recent timings of this kind."""
        lately = self._lately[kind]
        return len(lately) >= FEWEST and ms > SLOWED * median(lately)

    def may_retake(self) -> bool:
        """Returns whether a repetition is within the allowed share, and counts it if so."""
        if self._again + 1 > AGAIN_SHARE * self._first:
            return False
        self._again += 1
        return True
