"""The token counts of each sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ..data.cache.reader import Cache


@dataclass(frozen=True)
class TokenCounts:
    """Tokens of each sample's prompt, of its image in each tier, and of its answer; NaN where the cache records none.

    The first two are known before the model runs. The answer's are the mean over the settings.
    """

    text_tokens_S: NDArray[np.float32]
    vision_tokens_ST: NDArray[np.float32]
    output_tokens_S: NDArray[np.float32]

    @classmethod
    def from_cache(cls, cache: Cache) -> TokenCounts:
        """Reads the counts. Vision tokens depend on image and tier only, so any row of a tier gives them."""
        tier_X = cache.space.value_index_KX[0]
        text = cache.samples["text_tokens"].cast(float).to_numpy() if "text_tokens" in cache.samples.columns else None
        text_S = np.full(len(cache.sample_ids), np.nan) if text is None else np.asarray(text, dtype=np.float64)
        recorded_SX = cache.outcome_column("vision_tokens")
        tiers = len(cache.space.tiers)
        vision_ST = np.full((len(text_S), tiers), np.nan, dtype=np.float32)
        if recorded_SX is not None:
            for tier in range(tiers):
                known = np.where(np.isfinite(recorded_SX), recorded_SX, -np.inf)[:, tier_X == tier]
                highest = known.max(axis=1, initial=-np.inf)
                vision_ST[:, tier] = np.where(np.isfinite(highest), highest, np.nan)
        return cls(
            text_S.astype(np.float32), vision_ST, _mean_of_known(cache.outcome_column("output_tokens"), len(text_S))
        )

    @classmethod
    def unknown(cls, samples: int, tiers: int) -> TokenCounts:
        """Returns the counts of a cache that records none."""
        unknown_S = np.full(samples, np.nan, np.float32)
        return cls(unknown_S, np.full((samples, tiers), np.nan, np.float32), unknown_S)


def _mean_of_known(value_SX: NDArray[np.floating] | None, samples: int) -> NDArray[np.float32]:
    """Returns the mean of each row's known values; NaN for a row without any."""
    if value_SX is None:
        return np.full(samples, np.nan, np.float32)
    known_SX = np.isfinite(value_SX)
    count_S = known_SX.sum(axis=1)
    total_S = np.where(known_SX, value_SX, 0.0).sum(axis=1)
    return np.where(count_S > 0, total_S / np.maximum(count_S, 1), np.nan).astype(np.float32)
