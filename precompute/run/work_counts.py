"""Counts of the work requested and executed, and wall time for each kind of work."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

# Kinds of work, under the names that the manifest and the summary use.
KINDS = ("prepare", "token_pass", "sweep", "rerun", "timing", "write")
COUNTS = (
    "samples",
    "vision_runs_asked",
    "vision_runs_executed",
    "block_runs_asked",
    "block_runs_executed",
    "answers_asked",
    "answers_executed",
    "near_ties_logits",
    "near_ties_router",
    "answers_changed_by_rerun",
    "timings_retaken",  # because the machine was slower than before
)


class Ledger:
    """Counts and times, which add up over parts."""

    def __init__(self, device: torch.device | None = None) -> None:
        self._device = device
        self.counts: Counter[str] = Counter(dict.fromkeys(COUNTS, 0))
        self.seconds: defaultdict[str, float] = defaultdict(float, dict.fromkeys(KINDS, 0.0))

    def add(self, name: str, amount: int = 1) -> None:
        """Adds `amount` to the count of `name`."""
        assert name in COUNTS, name
        self.counts[name] += amount

    @contextmanager
    def timed(self, kind: str) -> Iterator[None]:
        """Adds the body's wall time to `kind`. On CUDA this includes the kernels that the body launched."""
        assert kind in KINDS, kind
        start = time.perf_counter()
        try:
            yield
        finally:
            if self._device is not None and self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            self.seconds[kind] += time.perf_counter() - start

    def absorb(self, record: Mapping[str, Any]) -> None:
        """Adds the counts and times of another ledger's `to_dict`."""
        for name, count in record["counts"].items():
            self.counts[name] += count
        for kind, seconds in record["seconds"].items():
            self.seconds[kind] += seconds

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: `counts` and `seconds` (per kind of work)."""
        return {
            "counts": dict(self.counts),
            "seconds": {kind: round(seconds, 3) for kind, seconds in self.seconds.items()},
        }
