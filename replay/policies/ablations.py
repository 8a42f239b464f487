"""Parts of a policy: the knobs it is allowed to set, with the budget-only table setting the rest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ...data.protocols import Policy, Requests
from .axes import KNOBS
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
    """`policy` sets the knobs named, `table` the best of the rest given those.

    Where a sample lacks every setting with the policy's knob, the table's own choice stands.
    """

    def __init__(self, name: str, policy: Policy, table: ScoredPolicy, knobs: Sequence[str]) -> None:
        self.name = name
        self.policy = policy
        self.table = table
        self.kept = frozenset(KNOBS.index(knob) for knob in knobs)
        stage2 = bool(self.kept & {2, 3})
        self.uses_latency_token = stage2 and policy.uses_latency_token

    def choose_image(self, requests: Requests) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        tier_B, position_B = self.policy.choose_image(requests) if self.kept & {0, 1} else (None, None)
        fixed = {}
        if tier_B is not None and 0 in self.kept:
            fixed[0] = tier_B
        if position_B is not None and 1 in self.kept:
            fixed[1] = position_B
        setting_B = self._best(requests, fixed, {})
        return self.table.axes.axis_KX[0, setting_B], self.table.axes.axis_KX[1, setting_B]

    def choose_compute(
        self,
        requests: Requests,
        tier_B: NDArray[np.int64],
        position_B: NDArray[np.int64],
        token_BD: NDArray[np.float16] | None,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        given = {0: tier_B, 1: position_B}
        wished = {}
        if self.kept & {2, 3}:
            top_k_B, num_blocks_B = self.policy.choose_compute(requests, tier_B, position_B, token_BD)
            wished = {knob: index for knob, index in ((2, top_k_B), (3, num_blocks_B)) if knob in self.kept}
        setting_B = self._best(requests, wished, given)
        return self.table.axes.axis_KX[2, setting_B], self.table.axes.axis_KX[3, setting_B]

    def _best(
        self, requests: Requests, wished: dict[int, NDArray[np.int64]], given: dict[int, NDArray[np.int64]]
    ) -> NDArray[np.int64]:
        score_BX = self.table.masked_scores_BX(requests)
        axis_KX = self.table.axes.axis_KX
        allowed_BX = np.isfinite(score_BX)
        for knob, index_B in wished.items():
            allowed_BX = allowed_BX & (axis_KX[knob] == index_B[:, None])
        for knob, index_B in given.items():
            allowed_BX = allowed_BX & (axis_KX[knob] == index_B[:, None])
        setting_B = np.where(allowed_BX, score_BX, -np.inf).argmax(axis=1)
        none_B = ~allowed_BX.any(axis=1)
        return np.where(none_B, self.table.best(requests, given), setting_B) if none_B.any() else setting_B


def ablations(policy: Policy, table: ScoredPolicy, names: Sequence[str] = tuple(ABLATIONS)) -> list[Ablation]:
    """Returns the ablations of `policy` by name, called `<policy>:<ablation>`."""
    return [Ablation(f"{policy.name}:{name}", policy, table, ABLATIONS[name]) for name in names]
