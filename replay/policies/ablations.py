"""Ablations: a policy sets some of the knobs, and the budget-only table sets the others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ...data.knobs import KNOBS
from ...data.protocols import Policy, Requests
from .scored import ScoredPolicy

ABLATIONS: dict[str, tuple[str, ...]] = {
    "stage1_only": ("tier", "insertion_position"),
    "stage2_only": ("top_k", "num_blocks"),
    "only_tier": ("tier",),
    "only_insertion_position": ("insertion_position",),
    "only_top_k": ("top_k",),
    "only_num_blocks": ("num_blocks",),
}


class Ablation:
    """Sets `knobs` as `policy` does, and the other knobs to the best values given those, according to `table`.

    If a sample has no outcome with the policy's values, the table's own choice is used.
    """

    def __init__(self, name: str, policy: Policy, table: ScoredPolicy, knobs: Sequence[str]) -> None:
        self.name = name
        self.policy = policy
        self.table = table
        self.kept = frozenset(KNOBS.index(knob) for knob in knobs)
        self.uses_latency_token = bool(self.kept & {2, 3}) and policy.uses_latency_token

    def choose_image(self, requests: Requests) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        wanted: dict[int, NDArray[np.int64]] = {}
        if self.kept & {0, 1}:
            chosen = enumerate(self.policy.choose_image(requests))
            wanted = {knob: index_B for knob, index_B in chosen if knob in self.kept}
        setting_B = self._best(requests, wanted, {})
        return self.table.space.value_index_KX[0, setting_B], self.table.space.value_index_KX[1, setting_B]

    def choose_compute(
        self,
        requests: Requests,
        tier_B: NDArray[np.int64],
        position_B: NDArray[np.int64],
        token_BD: NDArray[np.float16] | None,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        wanted: dict[int, NDArray[np.int64]] = {}
        if self.kept & {2, 3}:
            chosen = enumerate(self.policy.choose_compute(requests, tier_B, position_B, token_BD), start=2)
            wanted = {knob: index_B for knob, index_B in chosen if knob in self.kept}
        setting_B = self._best(requests, wanted, {0: tier_B, 1: position_B})
        return self.table.space.value_index_KX[2, setting_B], self.table.space.value_index_KX[3, setting_B]

    def _best(
        self, requests: Requests, wanted: dict[int, NDArray[np.int64]], given: dict[int, NDArray[np.int64]]
    ) -> NDArray[np.int64]:
        """Returns the table's best settings with the knob values in `given` and, where possible, in `wanted`."""
        score_BX = self.table.masked_scores_BX(requests)
        allowed_BX = np.isfinite(score_BX)
        for knob, index_B in (*wanted.items(), *given.items()):
            allowed_BX = allowed_BX & (self.table.space.value_index_KX[knob] == index_B[:, None])
        setting_B = np.where(allowed_BX, score_BX, -np.inf).argmax(axis=1)
        none_B = ~allowed_BX.any(axis=1)
        return np.where(none_B, self.table.best(requests, given), setting_B) if none_B.any() else setting_B


def ablations(policy: Policy, table: ScoredPolicy) -> list[Ablation]:
    """Returns all ablations of `policy`, named `<policy>:<ablation>`."""
    return [Ablation(f"{policy.name}:{name}", policy, table, knobs) for name, knobs in ABLATIONS.items()]
