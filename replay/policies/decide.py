"""Asks a policy for its settings, sample by sample and budget by budget. Knows nothing of what they are worth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ...data.errors import CacheError
from ...data.protocols import Policy
from .reward_table import RewardTable


def decide(
    policy: Policy, table: RewardTable, sample_N: NDArray[np.int64], budget_M: Sequence[int]
) -> NDArray[np.int64]:
    """Returns the setting that the policy chooses for every sample and budget, [N, M], as index into the settings.

    `budget_M` are places in the cache's grid. A choice that the cache has no outcome for is an error: requests say
    what is on record (`Requests.available_BX`), so a policy that picks something else is wrong.
    """
    tokens = policy.uses_latency_token
    store_STPMD = table.tables.token_STPMD
    if tokens and store_STPMD is None:
        raise CacheError(
            f"policy `{policy.name}` reads latency tokens, and the cache has none (table `latency_tokens` is absent): "
            "make a cache with `knobctl precompute`, or evaluate the baselines that need none"
        )
    setting_NM = np.empty((len(sample_N), len(budget_M)), dtype=np.int64)
    for column, budget in enumerate(budget_M):
        requests = table.requests(sample_N, budget, with_tokens=tokens)
        if requests.available_BX is not None and not requests.available_BX.any(axis=1).all():
            stuck = sample_N[~requests.available_BX.any(axis=1)]
            raise CacheError(
                f"{len(stuck)} samples have no setting left to choose under budget {table.budgets_ms_M[budget]:g} ms "
                f"(the first: {table.tables.sample_ids[int(stuck[0])]}): no outcome on record has its latency token; "
                "complete the cache, or evaluate the baselines that read no token"
            )
        tier_N, position_N = policy.choose_image(requests)
        token_ND = None
        if tokens and store_STPMD is not None:
            token_ND = np.asarray(store_STPMD[sample_N, tier_N, position_N, budget])
        top_k_N, num_blocks_N = policy.choose_compute(requests, tier_N, position_N, token_ND)
        setting_N = table.axes.setting_index(tier_N, position_N, top_k_N, num_blocks_N)
        missing_N = ~table.available_SX[sample_N, setting_N]
        if missing_N.any():
            row = int(np.flatnonzero(missing_N)[0])
            raise CacheError(
                f"policy `{policy.name}` chose {table.tables.space.settings[setting_N[row]]} for sample "
                f"{requests.sample_ids[row]}, of which the cache has no outcome ({int(missing_N.sum())} such choices "
                f"under {table.budgets_ms_M[budget]:g} ms): the policy must choose among what the request says is there"
            )
        setting_NM[:, column] = setting_N
    return setting_NM
