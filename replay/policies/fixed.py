"""Policies that ignore the request: one ranking of settings for all, or a random choice.

A request for which the first setting is not available gets the next one.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

from ...data.knobs import KnobSpace
from ...data.protocols import Requests
from ..expected_outcomes import expected_latency_ms, mean_over_samples
from ..tables import ReplayTables
from .scored import ScoredPolicy


class RankedPolicy(ScoredPolicy):
    """The same ranking of settings for every request."""

    def __init__(self, name: str, space: KnobSpace, score_X: NDArray[np.floating]) -> None:
        super().__init__(name, space)
        self.score_X = score_X

    def scores_BX(self, requests: Requests) -> NDArray[np.floating]:
        return np.broadcast_to(self.score_X, (len(requests), len(self.score_X)))


def full_model(tables: ReplayTables) -> RankedPolicy:
    """The unmodified model: highest tier, native top-k, all blocks; the earliest position, since none has an effect."""
    space, native = tables.space, tables.native_top_k
    size = dict(zip(space.tiers, space.mean_tier_sizes, strict=True))
    order = [(size[s.tier], -abs(s.top_k - native), s.num_blocks, -(s.insertion_position or 0)) for s in space.settings]
    rank = {key: place for place, key in enumerate(sorted(set(order)))}
    return RankedPolicy("full", space, np.array([float(rank[key]) for key in order]))


def cheapest(tables: ReplayTables) -> RankedPolicy:
    """The setting with the lowest mean latency over the training split."""
    latency_ms_NX = tables.latency_ms_SX[tables.train_samples()]
    expected_ms_NX = expected_latency_ms(latency_ms_NX, tables.space.value_index_KX[0])
    return RankedPolicy("cheapest", tables.space, -mean_over_samples(latency_ms_NX, expected_ms_NX))


def best_fixed(tables: ReplayTables) -> RankedPolicy:
    """The setting with the highest mean reward over the training split and all budgets of the grid."""
    return RankedPolicy("best_fixed", tables.space, tables.train_rewards.mean_MX.mean(axis=0))


class RandomPolicy(ScoredPolicy):
    """Any available setting with equal probability, by seed, sample and budget; independent of request order."""

    def __init__(self, space: KnobSpace, seed: int) -> None:
        super().__init__("random", space)
        self.seed = seed

    def scores_BX(self, requests: Requests) -> NDArray[np.floating]:
        budget_bits_B = np.asarray(requests.budget_ms_B, dtype=np.float32).view(np.uint32)
        return np.stack(
            [
                np.random.default_rng([self.seed, zlib.crc32(sample_id.encode()), int(bits)]).random(
                    len(self.space.settings), dtype=np.float32
                )
                for sample_id, bits in zip(requests.sample_ids, budget_bits_B, strict=True)
            ]
        )
