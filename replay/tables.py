"""A cache as dense arrays: outcomes and rewards by sample, budget and setting, for training and evaluation.

Shapes: S samples of the cache, N of them, B requests, X settings (the cache's setting axis), M budgets, T tiers,
P insertion positions, D = d_model; J and A choices of Stage1 and Stage2 (see `KnobSpace`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..controllers.budget_encoder import BudgetEncoder, read_budget_encoder
from ..controllers.conditions import Conditions, ModelIdentity
from ..data.errors import KnobctlError
from ..data.knobs import KnobSpace
from ..data.protocols import Requests
from .expected_outcomes import completed, expected_accuracy, expected_latency_ms, mean_over_samples
from .reward import RewardWeights, complexity, reward, reward_terms
from .token_counts import TokenCounts

if TYPE_CHECKING:
    from ..data.cache.reader import Cache

_ROWS_AT_ONCE = 2048  # bounds the reward's temporaries: 2,048 rows of 375 settings are 3 MB each

UNTIMED = (
    "the cache has no latencies (its results recorded none), and without them no choice can be rewarded: import "
    "results that hold T_total, or let the model measure with "
    "`knobctl precompute --model MODEL --dataset NAME --from-results DIR --out CACHE`"
)


@dataclass(frozen=True)
class ReplayTables:
    """The outcome of every choice and, with `weights`, its reward. NaN marks a missing outcome."""

    space: KnobSpace
    n_blocks: int
    native_top_k: int
    sample_ids: tuple[str, ...]
    datasets: tuple[str, ...]  # of each sample
    cluster_S: NDArray[np.int64]  # equal for samples of one image, which are never in two folds
    split_indices: Mapping[str, NDArray[np.int64]]
    budgets_ms_M: NDArray[np.float32]
    accuracy_SX: NDArray[np.float32]
    latency_ms_SX: NDArray[np.float32]
    language_feature_SD: NDArray[np.float32]
    token_STPMD: NDArray[np.float16] | None  # may be a memory map of many GB: read in slices
    token_present_STPM: NDArray[np.bool_] | None
    weights: RewardWeights = field(default_factory=RewardWeights)
    fingerprint: str | None = None
    model: ModelIdentity | None = None
    conditions: Conditions = field(default_factory=Conditions)
    recorded_counts: TokenCounts | None = None

    @classmethod
    def from_cache(cls, cache: Cache, weights: RewardWeights | None = None) -> ReplayTables:
        """Reads a whole cache. Tokens remain in their file; everything else is in memory."""
        frame = cache.samples
        image_ids = frame["image_id"].to_list() if "image_id" in frame.columns else list(cache.sample_ids)
        image_ids = [image or sample for image, sample in zip(image_ids, cache.sample_ids, strict=True)]
        tokens = cache.tokens
        return cls(
            space=cache.space,
            n_blocks=cache.manifest.n_blocks,
            native_top_k=cache.manifest.native_top_k,
            sample_ids=tuple(cache.sample_ids),
            datasets=tuple(frame["dataset"].to_list()),
            cluster_S=_numbered(image_ids),
            split_indices={split: cache.indices(split) for split in ("train", "val", "test")},
            budgets_ms_M=np.array(cache.budgets_ms, dtype=np.float32),
            accuracy_SX=np.asarray(cache.accuracy_SX),
            latency_ms_SX=np.asarray(cache.latency_ms_SX),
            language_feature_SD=np.asarray(cache.language_feature_SD),
            token_STPMD=None if tokens is None else tokens.token_STPMD,
            token_present_STPM=None if tokens is None else np.asarray(tokens.present_STPM),
            weights=weights or RewardWeights(),
            fingerprint=cache.fingerprint,
            model=ModelIdentity.of(cache.manifest),
            conditions=Conditions.of(cache.manifest, frame["dataset"].unique().to_list()),
            recorded_counts=TokenCounts.from_cache(cache),
        )

    def with_splits(self, split_indices: Mapping[str, NDArray[np.int64]]) -> ReplayTables:
        """Returns the same tables with another division of the samples."""
        return replace(self, split_indices=split_indices)

    @property
    def d_model(self) -> int:
        return int(self.language_feature_SD.shape[1])

    @cached_property
    def counts(self) -> TokenCounts:
        """The token counts of each sample; NaN where none are recorded."""
        return self.recorded_counts or TokenCounts.unknown(len(self.sample_ids), len(self.space.tiers))

    @cached_property
    def dataset_S(self) -> NDArray[np.int64]:
        """A number for each sample's dataset."""
        return _numbered(self.datasets)

    @cached_property
    def sample_index(self) -> dict[str, int]:
        return {sample_id: index for index, sample_id in enumerate(self.sample_ids)}

    @cached_property
    def complexity_X(self) -> NDArray[np.float32]:
        return complexity(self.space, self.native_top_k, self.n_blocks)

    @cached_property
    def available_SX(self) -> NDArray[np.bool_]:
        """Whether both accuracy and latency are known, so that the choice has a reward."""
        return np.isfinite(self.accuracy_SX) & np.isfinite(self.latency_ms_SX)

    def indices(self, split: str) -> NDArray[np.int64]:
        """Returns the indices of all samples of a split."""
        return self.split_indices.get(split, np.zeros(0, dtype=np.int64))

    def measured(self, split: str) -> NDArray[np.int64]:
        """Returns the indices of a split's samples with at least one outcome; may be empty."""
        sample_N = self.indices(split)
        return sample_N[self.available_SX[sample_N].any(axis=1)]

    def train_samples(self) -> NDArray[np.int64]:
        """Returns the training samples with outcomes. Raises KnobctlError if there are none."""
        sample_N = self.measured("train")
        if not len(sample_N):
            raise KnobctlError(
                "the cache has no sample with outcomes in split `train`, so tables and neighbours cannot be "
                "fitted: add a training split, or leave out the policies that are fitted"
            )
        return sample_N

    @cached_property
    def fit_and_tune_samples(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Training samples to fit on, and samples to choose hyperparameters on.

        The latter are `val`; without it, every fifth image of the training split is held out for the choice.
        """
        train_N, val_N = self.train_samples(), self.measured("val")
        if len(val_N):
            return train_N, val_N
        held_out = self.cluster_S[train_N] % 5 == 4
        if not held_out.any() or held_out.all():
            return train_N, train_N[:0]
        return train_N[~held_out], train_N[held_out]

    def requests(self, sample_N: NDArray[np.int64], budget: int, *, with_tokens: bool = False) -> Requests:
        """Returns requests of cached samples under one budget of the grid, with the settings recorded for each.

        `with_tokens` also requires the latency token that precedes a setting: for policies that read it.
        """
        available_NX = self.available_SX[sample_N]
        if with_tokens and self.token_present_STPM is not None:
            tier_X, position_X = self.space.value_index_KX[:2]
            available_NX = available_NX & self.token_present_STPM[sample_N, :, :, budget][:, tier_X, position_X]
        return Requests(
            sample_ids=tuple(self.sample_ids[index] for index in sample_N),
            datasets=tuple(self.datasets[index] for index in sample_N),
            language_feature_BD=self.language_feature_SD[sample_N],
            budget_ms_B=np.full(len(sample_N), self.budgets_ms_M[budget], dtype=np.float32),
            available_BX=available_NX,
            vision_tokens_BT=self.counts.vision_tokens_ST[sample_N],
            text_tokens_B=self.counts.text_tokens_S[sample_N],
        )

    def sample_rows(self, requests: Requests) -> NDArray[np.int64]:
        """Returns the index of each request's sample, [B]."""
        return np.array([self.sample_index[sample_id] for sample_id in requests.sample_ids], dtype=np.int64)

    def budget_rows(self, budget_ms_B: Sequence[float] | NDArray[np.float32]) -> NDArray[np.int64]:
        """Returns each budget's index in the cache's grid, compared as float32.

        Raises KnobctlError for a budget that is not in the grid, and for a cache without a grid.
        """
        budget_ms_B = np.asarray(budget_ms_B, dtype=np.float32)
        if not len(self.budgets_ms_M):
            raise KnobctlError(
                "the cache has no budget grid (`budgets_ms` in cache.json is empty): import the results again, which "
                "makes a grid of their recorded latencies"
            )
        match_BM = budget_ms_B[:, None] == self.budgets_ms_M[None, :]
        if not match_BM.any(axis=1).all():
            unknown = sorted({float(budget) for budget in budget_ms_B[~match_BM.any(axis=1)]})
            raise KnobctlError(
                f"budgets {unknown} ms are not in the cache's grid, and replay supports no others: choose from "
                f"[{', '.join(str(budget) for budget in self.budgets_ms_M)}] ms"
            )
        return match_BM.argmax(axis=1)

    def grid_indices(self, budgets_ms: Sequence[float] | None) -> tuple[int, ...]:
        """Returns the distinct indices of these budgets in the grid, ascending; of all budgets if none are given."""
        return tuple(sorted(set(self.budget_rows(budgets_ms or self.budgets_ms_M).tolist())))

    def terms(
        self,
        accuracy: NDArray[np.float32],
        latency_ms: NDArray[np.float32],
        budget_ms: NDArray[np.float32],
        setting: NDArray[np.int64],
    ) -> dict[str, NDArray[np.float32]]:
        """Returns the reward's terms by name for outcomes under these settings; all arrays broadcast."""
        terms = reward_terms(*self._tensors(accuracy, latency_ms, budget_ms, self.complexity_X[setting]), self.weights)
        return {name: value.numpy() for name, value in terms.items()}

    def reward(
        self, accuracy_NX: NDArray[np.float32], latency_ms_NX: NDArray[np.float32], budget_ms_N: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Returns the rewards of outcomes under all settings, NaN where an outcome is missing, [N, X]."""
        reward_NX = np.empty(accuracy_NX.shape, dtype=np.float32)
        for start in range(0, len(reward_NX), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            inputs = (accuracy_NX[part], latency_ms_NX[part], budget_ms_N[part, None], self.complexity_X)
            reward_NX[part] = reward(*self._tensors(*inputs), self.weights).numpy()
        return reward_NX

    @staticmethod
    def _tensors(*arrays: NDArray[np.float32]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        first, second, third, fourth = (torch.from_numpy(np.asarray(a, dtype=np.float32)) for a in arrays)
        return first, second, third, fourth

    def reward_BX(self, sample_B: NDArray[np.int64], budget_ms_B: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns the reward of every setting, NaN where the outcome is missing. Budgets need not be in the grid."""
        return self.reward(self.accuracy_SX[sample_B], self.latency_ms_SX[sample_B], budget_ms_B)

    def reward_NMX(self, sample_N: NDArray[np.int64]) -> NDArray[np.float32]:
        """Returns the reward of every setting for these samples under every budget; NaN where it is missing."""
        outcomes = self.accuracy_SX[sample_N], self.latency_ms_SX[sample_N]
        reward_NMX = np.empty((len(sample_N), len(self.budgets_ms_M), len(self.space.settings)), dtype=np.float32)
        for budget, budget_ms in enumerate(self.budgets_ms_M):
            reward_NMX[:, budget] = self.reward(*outcomes, np.full(len(sample_N), budget_ms))
        return reward_NMX

    def mean_terms(self, sample_N: NDArray[np.int64], setting_NM: NDArray[np.int64]) -> dict[str, float]:
        """Returns each reward term's mean over these samples and all budgets, with the settings chosen for them."""
        rows_N = sample_N[:, None]
        outcomes = (self.accuracy_SX[rows_N, setting_NM], self.latency_ms_SX[rows_N, setting_NM])
        terms = self.terms(*outcomes, self.budgets_ms_M, setting_NM)
        return {name: float(value.mean(dtype=np.float64)) for name, value in terms.items()}

    @cached_property
    def train_rewards(self) -> FilledRewards:
        """The rewards of the training samples, missing ones filled."""
        return FilledRewards(self, self.train_samples())


class FilledRewards:
    """Rewards of some samples under every setting: recorded ones, else expected ones (see `expected_outcomes`)."""

    def __init__(self, tables: ReplayTables, sample_N: NDArray[np.int64]) -> None:
        self.tables = tables
        self.sample_N = sample_N
        self._expected: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None
        if not tables.available_SX[sample_N].all():
            self._expected = (
                expected_accuracy(tables.accuracy_SX[sample_N]),
                expected_latency_ms(tables.latency_ms_SX[sample_N], tables.space.value_index_KX[0]),
            )

    def at_NX(self, budget_ms: float) -> NDArray[np.float32]:
        """Returns the rewards under any budget; NaN for a setting that none of the samples has."""
        return completed(*self._recorded_and_expected(budget_ms)).astype(np.float32, copy=False)

    def mean_X(self, budget_ms: float) -> NDArray[np.float64]:
        """Returns every setting's mean reward under any budget; NaN for a setting that none of the samples has."""
        return mean_over_samples(*self._recorded_and_expected(budget_ms))

    @cached_property
    def mean_MX(self) -> NDArray[np.float64]:
        """Every setting's mean reward under every budget of the grid."""
        return np.stack([self.mean_X(float(budget_ms)) for budget_ms in self.tables.budgets_ms_M])

    def _recorded_and_expected(self, budget_ms: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        budget_ms_N = np.full(len(self.sample_N), budget_ms, dtype=np.float32)
        reward_NX = self.tables.reward_BX(self.sample_N, budget_ms_N)
        return reward_NX, reward_NX if self._expected is None else self.tables.reward(*self._expected, budget_ms_N)


def _numbered(names: Sequence[str]) -> NDArray[np.int64]:
    """Returns one number per entry, the same for equal names."""
    number = {name: place for place, name in enumerate(sorted(set(names)))}
    return np.array([number[name] for name in names], dtype=np.int64)


def budget_encoder_for(path: Path | None, d_model: int, seed: int) -> BudgetEncoder:
    """Returns the cache's own budget encoder, or one made from the seed if the cache has none."""
    return BudgetEncoder.from_seed(d_model, seed) if path is None else read_budget_encoder(path, d_model)
