"""The samples that are still to be run, cut into parts as workers ask for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

PartIds = tuple[str, ...]

PARTS_LEFT = 2  # with fewer, fast workers wait longer for slow ones at the end; with more, there are more files


class PartQueue:
    """Hands out parts, and takes back those of lost workers.

    Args:
        sample_ids: in the order in which they are run.
        part_samples: the most samples of a part.
        parts_left: a part is at most a worker's fair share of the rest divided by this.
    """

    def __init__(self, sample_ids: Sequence[str], part_samples: int, *, parts_left: int = PARTS_LEFT) -> None:
        self._waiting = list(sample_ids)
        self._part_samples, self._parts_left = part_samples, parts_left
        self._returned: list[PartIds] = []
        self._losses: Counter[PartIds] = Counter()
        self._shown: Counter[PartIds] = Counter()  # samples that the progress bar has counted

    def next(self, workers: int) -> PartIds | None:
        """Returns the next part; None if there is none. Near the end parts shrink, so that all workers end together.

        Args:
            workers: how many run parts, or soon will.
        """
        if self._returned:
            return self._returned.pop()
        size = self._part_samples
        if workers > 1:
            size = min(size, -(-len(self._waiting) // (workers * self._parts_left)))
        part, self._waiting = tuple(self._waiting[:size]), self._waiting[size:]
        return part or None

    def give_back(self, part: PartIds, *, counts: bool = True) -> int:
        """Takes back the part of a lost worker, to be handed out next. Returns how many workers it has lost.

        Args:
            counts: False if the part cannot be the cause of the loss.
        """
        self._returned.append(part)
        self._losses[part] += counts
        return self._losses[part]

    def is_new_step(self, part: PartIds, steps: int) -> bool:
        """Returns whether no earlier attempt at a part has reported this many finished samples."""
        is_new = steps > self._shown[part]
        self._shown[part] = max(steps, self._shown[part])
        return is_new

    @property
    def num_parts(self) -> int:
        """The number of workers that could be given a part now."""
        return len(self._returned) + len(self._waiting)
