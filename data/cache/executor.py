"""Implements the `Executor` protocol by looking outcomes up in a cache instead of running the model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import CacheError, UnknownSetting
from ..knobs import KnobSetting
from ..outcome import Outcome
from ..samples import Sample
from .reader import Cache


@dataclass(frozen=True)
class CacheHandle:
    """The sample whose token was looked up, by index, and the tier and position chosen for it."""

    sample: int
    tier: str
    insertion_position: int | None


class CacheExecutor:
    """Looks outcomes up. Raises CacheError for a missing row and UnknownSetting for a budget outside the grid."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache

    def session(self, budgets_ms: Sequence[float]) -> AbstractContextManager[None]:  # noqa: ARG002 - part of the protocol
        """See `Executor.session`. Look-ups need no preparation."""
        return nullcontext()

    def language_feature(self, sample: Sample) -> NDArray[np.float32]:
        """See `Executor.language_feature`."""
        return self.cache.language_feature_SD[self._sample(sample)]

    def latency_token(
        self, sample: Sample, tier: str, insertion_position: int, budget_ms: float
    ) -> tuple[NDArray[np.float16], CacheHandle]:
        """See `Executor.latency_token`. The error for a budget outside the grid lists the grid."""
        cache, index = self.cache, self._sample(sample)
        budget = cache.budget_index(budget_ms)
        if cache.tokens is None:
            raise CacheError(f"{cache.path} has no latency tokens, which Stage2 needs")
        if tier not in cache.space.tiers or insertion_position not in cache.space.insertion_positions:
            raise UnknownSetting(
                f"tier {tier!r} at position {insertion_position} is not in the knob space: {cache.space}"
            )
        place = (
            index,
            cache.space.tiers.index(tier),
            cache.space.insertion_positions.index(insertion_position),
            budget,
        )
        if not cache.tokens.present_STPM[place]:
            raise CacheError(
                f"{cache.path} has no latency token of sample {sample.sample_id!r} for tier {tier!r}, insertion "
                f"position {insertion_position} and a budget of {budget_ms:g} ms"
            )
        return np.asarray(cache.tokens.token_STPMD[place]), CacheHandle(index, tier, insertion_position)

    def finish(self, handle: CacheHandle, top_k: int, num_blocks: int) -> Outcome:
        """See `Executor.finish`."""
        setting = KnobSetting(handle.tier, handle.insertion_position, top_k, num_blocks)
        return self.outcome(handle.sample, setting)

    def outcome(self, sample: int, setting: KnobSetting) -> Outcome:
        """Returns the outcome of the sample with index `sample` under one setting."""
        cache = self.cache
        cell = (sample, cache.space.index(setting))
        if not cache.present_SX[cell]:
            raise CacheError(f"{cache.path} has no outcome of sample {cache.sample_ids[sample]!r} under {setting}")
        latency_ms = float(cache.latency_ms_SX[cell])
        runs = cache.outcome_value("latency_runs_ms", *cell)
        return Outcome(
            answer=cache.outcome_value("answer", *cell),
            accuracy=float(cache.accuracy_SX[cell]),
            latency_ms=None if np.isnan(latency_ms) else latency_ms,
            output_tokens=cache.outcome_value("output_tokens", *cell),
            vision_tokens=cache.outcome_value("vision_tokens", *cell),
            latency_std_ms=cache.outcome_value("latency_std_ms", *cell),
            vision_ms=cache.outcome_value("vision_ms", *cell),
            prefill_ms=cache.outcome_value("prefill_ms", *cell),
            decode_ms=cache.outcome_value("decode_ms", *cell),
            latency_runs_ms=tuple(runs or ()),
            outcome_source=cache.outcome_value("outcome_source", *cell),
        )

    def _sample(self, sample: Sample) -> int:
        index = self.cache.sample_index.get(sample.sample_id)
        if index is None:
            raise CacheError(f"{self.cache.path} has no sample {sample.sample_id!r}")
        return index
