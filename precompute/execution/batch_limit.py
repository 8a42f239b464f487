"""Splits rows into calls as large as memory allows; the limit is halved when memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

# Positions in one call. On the CPU a call's arrays should stay in the caches: measured on two cores, a block cost 4 us
# per position at 1,300 positions, 5 to 8 us at 6,400, 16 us at 64. On a GPU memory is the limit.
CPU_POSITIONS = 1536
CUDA_POSITIONS = 65536


class BatchLimit:
    """The number of positions in one call. It is halved permanently when memory runs out."""

    def __init__(self, positions: int) -> None:
        self.positions = positions

    @classmethod
    def of(cls, device: torch.device) -> BatchLimit:
        """Returns the initial limit for a device."""
        return cls(CPU_POSITIONS if device.type == "cpu" else CUDA_POSITIONS)

    def batches(
        self, items: Sequence[Item], positions_each: int, run: Callable[[Sequence[Item]], Result]
    ) -> Iterator[Result]:
        """Yields `run(batch)` for consecutive batches of `items`; a batch that runs out of memory is split in half.

        Args:
            positions_each: positions of one item.

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
