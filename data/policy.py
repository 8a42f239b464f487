"""A policy maps (sample, budget) to a setting in two calls; trained controllers and baselines look the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Requests:
    """What is known of B requests before the model runs."""

    sample_ids: tuple[str, ...]
    datasets: tuple[str, ...]
    language_feature_BD: NDArray[np.float32]
    budget_ms_B: NDArray[np.float32]
    available_BX: NDArray[np.bool_] | None = None
    """Settings that may be chosen, in the order of `KnobSpace.settings`: in replay those with a recorded outcome, so
    that a hole in the cache is never chosen; None, as when the model runs, means all of them."""

    def __len__(self) -> int:
        return len(self.sample_ids)


class Policy(Protocol):
    """Indices are into the knob space: `space.tiers[i]`, `space.insertion_positions[i]`, `space.top_k[i]`, ..."""

    name: str
    uses_latency_token: bool  # whether `choose_compute` reads `token_BD`; if not, no token need be computed

    def choose_image(self, requests: Requests) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Stage1's call, before the vision encoder: (tier index [B], insertion-position index [B])."""

    def choose_compute(
        self,
        requests: Requests,
        tier_B: NDArray[np.int64],
        position_B: NDArray[np.int64],
        token_BD: NDArray[np.float16] | None,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Stage2's call, from the latency token: (top-k index [B], num_blocks index [B])."""
