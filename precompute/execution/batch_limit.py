"""How many rows go into one call: as many as memory takes, found by halving. Knows nothing of what is run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

# Positions in one call. On the CPU what counts is that a call's arrays stay near the cores: in the trial on two cores a
# block cost 4 us a position at 1,300 positions, 5 to 8 at 6,400, 16 at 64. On a GPU it is memory, hence the halving.
CPU_POSITIONS = 1536
CUDA_POSITIONS = 65536


class BatchLimit:
    """Positions that go into one call. Halved for good when memory runs out."""

    def __init__(self, positions: int) -> None:
        self.positions = positions

    @classmethod
    def of(cls, device: torch.device) -> BatchLimit:
        """The starting value for a device."""
        return cls(CPU_POSITIONS if device.type == "cpu" else CUDA_POSITIONS)

    def batches(
        self, items: Sequence[Item], positions_each: int, run: Callable[[Sequence[Item]], Result]
    ) -> Iterator[Result]:
        """Yields `run` of consecutive batches of `items`; a batch that memory does not take is run again in halves.

        Raises:
            torch.OutOfMemoryError: a single item does not fit.
        """
        start = 0
        while start < len(items):
            count = max(1, self.positions // positions_each)
            batch = items[start : start + count]
            try:
                result = run(batch)
            except torch.OutOfMemoryError:
                if len(batch) == 1:
                    raise
                self.positions = max(1, len(batch) // 2) * positions_each
                torch.cuda.empty_cache()
                continue
            start += len(batch)
            yield result
