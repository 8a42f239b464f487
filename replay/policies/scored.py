"""Policies that score every setting and take the best that is left. Knows nothing of where scores come from."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from ...data.errors import CacheError
from ...data.protocols import Requests
from .axes import SettingAxes

# Where a score is NaN nothing is known in favour of the setting: it is chosen only when nothing else is left.
_UNKNOWN = -1e30


class ScoredPolicy(ABC):
    """Stage1's call takes the pair of the best setting, Stage2's the best setting with the pair it is given.

    A setting that a request lacks is never chosen. Ties go to the setting that comes first in the knob space, which
    is the smaller one in a space that lists its values in ascending order.
    """

    uses_latency_token = False

    def __init__(self, name: str, axes: SettingAxes) -> None:
        self.name = name
        self.axes = axes
        self._last: tuple[Requests, NDArray[np.floating]] | None = None

    @abstractmethod
    def scores_BX(self, requests: Requests) -> NDArray[np.floating]:
        """Returns how good each setting is for each request, [B, X]; NaN where nothing is known."""

    def masked_scores_BX(self, requests: Requests) -> NDArray[np.floating]:
        """Returns the scores, -inf where a request lacks the setting. Kept for the second of the two calls."""
        if self._last is None or self._last[0] is not requests:
            score_BX = np.nan_to_num(self.scores_BX(requests), nan=_UNKNOWN)
            if requests.available_BX is not None:
                score_BX = np.where(requests.available_BX, score_BX, -np.inf)
            self._last = (requests, score_BX)
        return self._last[1]

    def best(self, requests: Requests, fixed: dict[int, NDArray[np.int64]] | None = None) -> NDArray[np.int64]:
        """Returns the best setting of each request, [B], among those with the knobs that `fixed` names.

        `fixed` maps a knob's place in `axes.KNOBS` to its value's index, [B].
        """
        score_BX = self.masked_scores_BX(requests)
        for knob, index_B in (fixed or {}).items():
            score_BX = np.where(self.axes.axis_KX[knob] == index_B[:, None], score_BX, -np.inf)
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
        return self.axes.axis_KX[0, setting_B], self.axes.axis_KX[1, setting_B]

    def choose_compute(
        self,
        requests: Requests,
        tier_B: NDArray[np.int64],
        position_B: NDArray[np.int64],
        token_BD: NDArray[np.float16] | None,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        del token_BD  # scores come from what is known before the model runs
        setting_B = self.best(requests, {0: tier_B, 1: position_B})
        return self.axes.axis_KX[2, setting_B], self.axes.axis_KX[3, setting_B]
