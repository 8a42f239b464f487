"""The guard: replaces a choice that is expected to miss its budget by the best one that is expected to meet it.

It acts in both stages. Stage1's pair is kept if some (top-k, num_blocks) is expected to meet the budget with it;
otherwise the pair of the best fitting setting is used. Stage2's pair is kept if the setting is expected to meet the
budget; otherwise the best fitting setting with Stage1's pair is used. "Best" means the highest mean reward in training
under that budget. If nothing is expected to fit, the setting with the lowest estimate is run.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...data.protocols import Policy, Requests
from ..tables import ReplayTables
from .latency_estimate import LatencyEstimate
from .scored import ScoredPolicy


class GuardedPolicy:
    """`policy` with the guard. `replaced` counts requests, and those in which each stage changed the choice."""

    def __init__(self, policy: Policy, estimate: LatencyEstimate, ranking: ScoredPolicy) -> None:
        self.name = f"{policy.name}+guard"
        self.policy = policy
        self.tables: ReplayTables = estimate.tables
        self.estimate = estimate
        self.ranking = ranking
        self.uses_latency_token = policy.uses_latency_token
        self.replaced = {"requests": 0, "stage1": 0, "stage2": 0, "nothing_should_fit": 0}
        self._upper: tuple[tuple[str, ...], NDArray[np.float64]] | None = None

    def choose_image(self, requests: Requests) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        space = self.tables.space
        tier_B, position_B = self.policy.choose_image(requests)
        pair_B = space.stage1_choice(tier_B, position_B)
        upper_BX = self._upper_ms(requests)
        fits_BX = upper_BX <= requests.budget_ms_B[:, None]
        kept_B = (fits_BX & (space.stage1_choice_X == pair_B[:, None])).any(axis=1)
        kept_B |= np.isinf(upper_BX).all(axis=1)  # no estimate: training had none of the available settings
        setting_B = self._best(requests, fits_BX, upper_BX)
        self.replaced["requests"] += len(requests)
        self.replaced["stage1"] += int((~kept_B & (space.stage1_choice_X[setting_B] != pair_B)).sum())
        self.replaced["nothing_should_fit"] += int((~fits_BX.any(axis=1)).sum())
        return (
            np.where(kept_B, tier_B, space.value_index_KX[0, setting_B]),
            np.where(kept_B, position_B, space.value_index_KX[1, setting_B]),
        )

    def choose_compute(
        self,
        requests: Requests,
        tier_B: NDArray[np.int64],
        position_B: NDArray[np.int64],
        token_BD: NDArray[np.float16] | None,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        space = self.tables.space
        top_k_B, num_blocks_B = self.policy.choose_compute(requests, tier_B, position_B, token_BD)
        chosen_B = space.setting_index(tier_B, position_B, top_k_B, num_blocks_B)
        upper_BX = self._upper_ms(requests)
        pair_B = space.stage1_choice(tier_B, position_B)
        upper_BX = np.where(space.stage1_choice_X == pair_B[:, None], upper_BX, np.inf)
        fits_BX = upper_BX <= requests.budget_ms_B[:, None]
        kept_B = fits_BX[np.arange(len(chosen_B)), chosen_B]
        setting_B = np.where(kept_B, chosen_B, self._best(requests, fits_BX, upper_BX, chosen_B))
        self.replaced["stage2"] += int((setting_B != chosen_B).sum())
        return space.value_index_KX[2, setting_B], space.value_index_KX[3, setting_B]

    def _upper_ms(self, requests: Requests) -> NDArray[np.float64]:
        """Returns upper estimates of latency, [B, X]; infinite where a setting is not available."""
        if self._upper is None or self._upper[0] != requests.sample_ids:
            self._upper = (requests.sample_ids, self.estimate.upper_ms_NX(self.tables.sample_rows(requests)))
        available_BX = requests.available_BX
        return self._upper[1] if available_BX is None else np.where(available_BX, self._upper[1], np.inf)

    def _best(
        self,
        requests: Requests,
        fits_BX: NDArray[np.bool_],
        upper_BX: NDArray[np.float64],
        otherwise_B: NDArray[np.int64] | None = None,
    ) -> NDArray[np.int64]:
        """Returns the best setting that fits, else the one with the lowest estimate, else `otherwise_B`."""
        score_BX = np.where(fits_BX, self.ranking.masked_scores_BX(requests), -np.inf)
        fastest_B = upper_BX.argmin(axis=1)
        if otherwise_B is not None:
            fastest_B = np.where(np.isinf(upper_BX.min(axis=1)), otherwise_B, fastest_B)
        return np.where(fits_BX.any(axis=1), score_BX.argmax(axis=1), fastest_B)

    def to_dict(self) -> dict[str, object]:
        """Returns how often the guard replaced choices, and what its estimate is based on."""
        return {
            "miss_rate": self.estimate.miss_rate,
            "inputs": ["setting", *self.estimate.inputs_used],
            "raised_by_per_tier": dict(zip(self.tables.space.tiers, self.estimate.factor_T.tolist(), strict=True)),
            **self.replaced,
        }
