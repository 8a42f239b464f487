"""Policies that score every setting and choose the best available one; independent of where scores come from."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from ...data.errors import CacheError
from ...data.knobs import KnobSpace
from ...data.protocols import Requests

# Replaces NaN: a setting without a score is chosen only if no other is available.
_UNKNOWN = -1e30


class ScoredPolicy(ABC):
    """Stage1 takes the tier and position of the best setting, Stage2 the best setting with the given pair.

    A setting that is not available to a request is never chosen. Ties go to the setting that comes first in the knob
    space, which is the smaller one if the space lists its values in ascending order.
    """

    uses_latency_token = False

    def __init__(self, name: str, space: KnobSpace) -> None:
        self.name = name
        self.space = space
        self._last: tuple[Requests, NDArray[np.floating]] | None = None

    @abstractmethod
    def scores_BX(self, requests: Requests) -> NDArray[np.floating]:
        """Returns how good each setting is for each request; NaN where unknown."""

    def masked_scores_BX(self, requests: Requests) -> NDArray[np.floating]:
        """Returns the scores, -inf where a setting is not available. The last result is kept for the second call."""
        if self._last is None or self._last[0] is not requests:
            score_BX = np.nan_to_num(self.scores_BX(requests), nan=_UNKNOWN)
            if requests.available_BX is not None:
                score_BX = np.where(requests.available_BX, score_BX, -np.inf)
            self._last = (requests, score_BX)
        return self._last[1]

    def best(self, requests: Requests, fixed: dict[int, NDArray[np.int64]] | None = None) -> NDArray[np.int64]:
        """Returns the best setting of each request, [B], among those with the knob values in `fixed`.

        `fixed` maps a knob's position in `KNOBS` to its value's index, [B]. Raises CacheError for a request without
        such a setting.
        """
        score_BX = self.masked_scores_BX(requests)
        for knob, index_B in (fixed or {}).items():
            score_BX = np.where(self.space.value_index_KX[knob] == index_B[:, None], score_BX, -np.inf)
        setting_B = score_BX.argmax(axis=1)
        stuck_B = np.isneginf(score_BX[np.arange(len(setting_B)), setting_B])
        if stuck_B.any():
            row = int(np.flatnonzero(stuck_B)[0])
            raise CacheError(
                f"sample {requests.sample_ids[row]} has no outcome left to choose for policy `{self.name}`"
                + (" with the knobs already chosen" if fixed else "")
                + ": leave the sample out, or complete the cache"
            )
        return setting_B

    def choose_image(self, requests: Requests) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        setting_B = self.best(requests)
        return self.space.value_index_KX[0, setting_B], self.space.value_index_KX[1, setting_B]

    def choose_compute(
        self,
        requests: Requests,
        tier_B: NDArray[np.int64],
        position_B: NDArray[np.int64],
        token_BD: NDArray[np.float16] | None,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        del token_BD  # scores depend only on what is known before the model runs
        setting_B = self.best(requests, {0: tier_B, 1: position_B})
        return self.space.value_index_KX[2, setting_B], self.space.value_index_KX[3, setting_B]
