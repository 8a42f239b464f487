"""How many threads may be asked for."""

from __future__ import annotations

import os

from .errors import KnobctlError


def check_threads(count: int) -> None:
    """Raises KnobctlError unless `count` is between 1 and the number of CPUs: far too many crash torch."""
    cpus = os.cpu_count() or 1
    if not 1 <= count <= cpus:
        raise KnobctlError(f"{count} threads: this machine has {cpus} CPU{'s' if cpus > 1 else ''}: use 1 to {cpus}.")
