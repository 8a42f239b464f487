"""Policies that look at nothing: one setting for all, or chance. Where a sample lacks it, the next in rank is run."""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

from ...data.protocols import Requests
from .axes import SettingAxes
from .expected import expected_latency_ms, mean_over_samples
from .reward_table import RewardTable
from .scored import ScoredPolicy


class RankedPolicy(ScoredPolicy):
    """The same ranking of settings for every request."""

    def __init__(self, name: str, axes: SettingAxes, score_X: NDArray[np.floating]) -> None:
        super().__init__(name, axes)
        self.score_X = score_X

    def scores_BX(self, requests: Requests) -> NDArray[np.floating]:
        return np.broadcast_to(self.score_X, (len(requests), len(self.score_X)))


def full_model(table: RewardTable) -> RankedPolicy:
    """The model as it is: highest tier, native top-k, all blocks; the earliest insertion position, as none matters."""
    space, native = table.tables.space, table.tables.native_top_k
    crops = dict(zip(space.tiers, space.mean_crops, strict=True))
    size = [(crops[s.tier], -abs(s.top_k - native), s.num_blocks, -(s.insertion_position or 0)) for s in space.settings]
    rank = {key: place for place, key in enumerate(sorted(set(size)))}
    return RankedPolicy("full", table.axes, np.array([float(rank[key]) for key in size]))


def cheapest(table: RewardTable) -> RankedPolicy:
    """The setting with the lowest mean latency over the training split."""
    latency_ms_NX = table.latency_ms_SX[table.train_rows()]
    expected_ms_NX = expected_latency_ms(latency_ms_NX, table.axes.axis_KX[0])
    return RankedPolicy("cheapest", table.axes, -mean_over_samples(latency_ms_NX, expected_ms_NX))


def best_fixed(table: RewardTable) -> RankedPolicy:
    """The one setting with the highest mean reward over the training split and all budgets of the grid."""
    return RankedPolicy("best_fixed", table.axes, table.train_reward_MX.mean(axis=0))


class RandomPolicy(ScoredPolicy):
    """Any setting that the sample has, each as likely, by seed, sample and budget: the order of requests is nothing."""

    def __init__(self, axes: SettingAxes, seed: int) -> None:
        super().__init__("random", axes)
        self.seed = seed

    def scores_BX(self, requests: Requests) -> NDArray[np.floating]:
        budget_bits_B = np.asarray(requests.budget_ms_B, dtype=np.float32).view(np.uint32)
        return np.stack(
            [
                np.random.default_rng([self.seed, zlib.crc32(sample_id.encode()), int(bits)]).random(
                    len(self.axes), dtype=np.float32
                )
                for sample_id, bits in zip(requests.sample_ids, budget_bits_B, strict=True)
            ]
        )
