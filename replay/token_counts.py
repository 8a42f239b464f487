"""The token counts of each sample, known before the model runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ..data.cache.reader import Cache


@dataclass(frozen=True)
class TokenCounts:
    """Tokens of each sample's prompt, and of its image in each tier; NaN where the cache records none."""

    text_tokens_S: NDArray[np.float32]
    vision_tokens_ST: NDArray[np.float32]

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
        return cls(text_S.astype(np.float32), vision_ST)

    @classmethod
    def unknown(cls, samples: int, tiers: int) -> TokenCounts:
        """Returns the counts of a cache that records none."""
        return cls(np.full(samples, np.nan, np.float32), np.full((samples, tiers), np.nan, np.float32))
