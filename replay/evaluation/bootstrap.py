"""95 % intervals by resampling images; independent of policies and rewards.

Samples of one image are drawn together, because their outcomes are not independent: intervals that assumed so would be
too narrow. A resample draws as many clusters as there are, with replacement. The same draws are used for every policy,
so the resampled difference of two policies is paired. Percentile intervals (Efron, 1979); several differences are
judged together with Holm's correction (1979).

Shapes: N samples, C clusters, R resamples, F values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

DEFAULT_RESAMPLES = 1000
DEFAULT_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A figure and its interval; None where undefined, as an interval from a single image is."""

    value: float | None
    low: float | None
    high: float | None

    def to_dict(self) -> dict[str, Any]:
        return {"value": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class ClusterBootstrap:
    """R resamples of C clusters, drawn once and applied to any values of the same N samples."""

    weight_RC: NDArray[np.float64]  # how often each resample draws each cluster
    cluster_N: NDArray[np.int64]  # 0 .. C-1
    confidence: float = DEFAULT_CONFIDENCE

    @classmethod
    def draw(
        cls,
        cluster_N: NDArray[np.int64],
        *,
        resamples: int = DEFAULT_RESAMPLES,
        seed: int = 0,
        confidence: float = DEFAULT_CONFIDENCE,
    ) -> ClusterBootstrap:
        """Draws the resamples; equal clusters, number of resamples and seed give equal resamples."""
        _, cluster_N = np.unique(cluster_N, return_inverse=True)
        count = int(cluster_N.max()) + 1
        drawn_RC = np.random.default_rng(seed).integers(count, size=(resamples, count))
        # Counting draws in each row gives multinomial weights, ten times faster than drawing those directly.
        place = (drawn_RC + count * np.arange(resamples)[:, None]).ravel()
        weight_RC = np.bincount(place, minlength=resamples * count).reshape(resamples, count)
        return cls(weight_RC.astype(np.float64), cluster_N, confidence)

    @property
    def significance(self) -> float:
        """The significance level of verdicts, that of the intervals."""
        return 1.0 - self.confidence

    @property
    def n_clusters(self) -> int:
        return self.weight_RC.shape[1]

    def resampled_means(self, value_NF: NDArray[np.floating | np.integer | np.bool_]) -> NDArray[np.float64]:
        """Returns the mean over samples of each column in every resample, [R, F]."""
        order = np.argsort(self.cluster_N, kind="stable")
        starts = np.searchsorted(self.cluster_N[order], np.arange(self.n_clusters))
        sum_CF = np.add.reduceat(np.asarray(value_NF, dtype=np.float64)[order], starts, axis=0)
        count_C = np.bincount(self.cluster_N, minlength=self.n_clusters)
        return (self.weight_RC @ sum_CF) / (self.weight_RC @ count_C)[:, None]

    def estimate(self, value: float, resampled_R: NDArray[np.float64]) -> Estimate:
        """Returns the figure with the percentile interval of its resampled values."""
        if not np.isfinite(value):
            return Estimate(None, None, None)
        known_R = resampled_R[np.isfinite(resampled_R)]
        if self.n_clusters < 2 or not len(known_R):
            return Estimate(float(value), None, None)
        tail = (1.0 - self.confidence) / 2.0
        low, high = np.quantile(known_R, [tail, 1.0 - tail])
        return Estimate(float(value), float(low), float(high))

    def p_value(self, resampled_R: NDArray[np.float64]) -> float | None:
        """Returns the two-sided p-value of a difference; None if no interval can be given.

        It is the smallest significance level at which the percentile interval of the resampled differences excludes 0,
        and at least 2 / (R + 1).
        """
        known_R = resampled_R[np.isfinite(resampled_R)]
        if self.n_clusters < 2 or not len(known_R):
            return None
        beyond = min(int((known_R <= 0).sum()), int((known_R >= 0).sum()))
        return min(1.0, 2.0 * (1 + beyond) / (1 + len(known_R)))

    def quantile_estimate(
        self, value: NDArray[np.floating], share: float, resampled_share_R: NDArray[np.float64]
    ) -> Estimate:
        """Returns a quantile of pooled values with Woodruff's interval (1952): that of the share below, inverted.

        `resampled_share_R` is the share of values at or below the quantile in every resample.
        """
        if not len(value):
            return Estimate(None, None, None)
        quantile = float(np.quantile(value, share))
        if self.n_clusters < 2:
            return Estimate(quantile, None, None)
        tail = (1.0 - self.confidence) / 2.0
        observed = float((value <= quantile).mean())
        low, high = np.quantile(resampled_share_R, [tail, 1.0 - tail])
        places = np.clip([share - (high - observed), share + (observed - low)], 0.0, 1.0)
        lower, upper = np.quantile(value, places)
        return Estimate(quantile, float(lower), float(upper))


def holm_adjusted(p_values: Sequence[float | None]) -> list[float | None]:
    """Returns each p-value of a family of comparisons adjusted by Holm's step-down method; None stays None.

    Calling those below a significance level different keeps the probability of a single false claim in the whole family
    below that level, however the comparisons depend on each other.
    """
    known = sorted((p_value, place) for place, p_value in enumerate(p_values) if p_value is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p_value, place) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p_value))
        adjusted[place] = largest
    return adjusted
