"""Collects a policy's choices for every sample and budget; independent of how choices are evaluated."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ...data.errors import CacheError
from ...data.protocols import Policy
from ..tables import ReplayTables


def decide(
    policy: Policy, tables: ReplayTables, sample_N: NDArray[np.int64], budget_M: Sequence[int]
) -> NDArray[np.int64]:
    """Returns the setting that the policy chooses for every sample and budget, [N, M], as index into the settings.

    `budget_M` are indices into the cache's grid. Raises CacheError for a policy that needs latency tokens the cache
    lacks, and for a choice without an outcome: requests list the available settings (`Requests.available_BX`), so a
    policy that picks another one is wrong.
    """
    store_STPMD = tables.token_STPMD
    if policy.uses_latency_token and store_STPMD is None:
        raise CacheError(
            f"policy `{policy.name}` reads latency tokens, and the cache has none (table `latency_tokens` is absent): "
            "make a cache with `knobctl precompute`, or evaluate the baselines that need none"
        )
    setting_NM = np.empty((len(sample_N), len(budget_M)), dtype=np.int64)
    for column, budget in enumerate(budget_M):
        requests = tables.requests(sample_N, budget, with_tokens=policy.uses_latency_token)
        if requests.available_BX is not None and not requests.available_BX.any(axis=1).all():
            stuck = sample_N[~requests.available_BX.any(axis=1)]
            raise CacheError(
                f"{len(stuck)} samples have no setting left to choose under budget {tables.budgets_ms_M[budget]:g} ms "
                f"(the first: {tables.sample_ids[int(stuck[0])]}): no recorded outcome has its latency token; "
                "complete the cache, or evaluate the baselines that read no token"
            )
        tier_N, position_N = policy.choose_image(requests)
        token_ND = None
        if policy.uses_latency_token and store_STPMD is not None:
            token_ND = np.asarray(store_STPMD[sample_N, tier_N, position_N, budget])
        top_k_N, num_blocks_N = policy.choose_compute(requests, tier_N, position_N, token_ND)
        setting_N = tables.space.setting_index(tier_N, position_N, top_k_N, num_blocks_N)
        missing_N = ~tables.available_SX[sample_N, setting_N]
        if missing_N.any():
            row = int(np.flatnonzero(missing_N)[0])
            raise CacheError(
                f"policy `{policy.name}` chose {tables.space.settings[setting_N[row]]} for sample "
                f"{requests.sample_ids[row]}, for which the cache has no outcome ({int(missing_N.sum())} such choices "
                f"under {tables.budgets_ms_M[budget]:g} ms): a policy must choose among the settings available"
            )
        setting_NM[:, column] = setting_N
    return setting_NM
