"""How many threads torch uses: one for what is timed or must be equal to the bit, else what is there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from ...data.machine import check_threads


@contextmanager
def num_threads(count: int) -> Iterator[None]:
    """Runs the body with `count` intra-op threads on the CPU, and puts the former number back, errors included.

    Raises KnobctlError for more threads than the machine has CPUs.
    """
    before = torch.get_num_threads()
    if before == count:
        yield
        return
    check_threads(count)
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def single_thread() -> AbstractContextManager[None]:
    """Runs the body on one thread: sums are then made in one order, whatever the machine has."""
    return num_threads(1)
