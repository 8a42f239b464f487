"""A cache as dense tensors: what training and evaluation look outcomes up in. Knows nothing of policies.

Shapes: S samples, X settings (the cache's setting axis), M budgets, T tiers, P insertion positions, D = d_model;
J = T*P choices of Stage1, A = top-k values * num_blocks values, the choices of Stage2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..controllers.budget_encoder import BudgetEncoder, read_budget_encoder
from ..controllers.two_stage import setting_grid
from ..data.knobs import KnobSpace
from .reward import RewardWeights, complexity, reward, reward_terms

if TYPE_CHECKING:
    from ..data.cache.reader import Cache


@dataclass(frozen=True)
class ReplayTables:
    """Every outcome of every choice. NaN marks a hole; `available_SX` says where there is none."""

    space: KnobSpace
    n_blocks: int
    native_top_k: int
    sample_ids: tuple[str, ...]
    cluster_S: NDArray[np.int64]  # samples of one image share a number: they are never in two folds
    dataset_S: NDArray[np.int64]  # samples of one dataset share a number
    split_indices: Mapping[str, NDArray[np.int64]]
    budgets_ms_M: Tensor
    accuracy_SX: Tensor
    latency_ms_SX: Tensor
    language_feature_SD: Tensor
    token_STPMD: NDArray[np.float16] | None  # may be a memory map of many GB: read in slices
    token_present_STPM: NDArray[np.bool_] | None
    fingerprint: str | None = None
    model_name: str | None = None
    model_fingerprint: str | None = None

    @property
    def d_model(self) -> int:
        return int(self.language_feature_SD.shape[1])

    @property
    def stage1_choices(self) -> int:
        """J, how many (tier, position) pairs there are."""
        return len(self.space.tiers) * len(self.space.insertion_positions)

    @property
    def stage2_choices(self) -> int:
        """A, how many (top-k, num_blocks) pairs there are."""
        return len(self.space.top_k) * len(self.space.num_blocks)

    @property
    def available_SX(self) -> Tensor:
        """Where both accuracy and latency are known, [S, X] bool: the rest cannot be rewarded."""
        return torch.isfinite(self.accuracy_SX) & torch.isfinite(self.latency_ms_SX)

    @property
    def complexity_X(self) -> Tensor:
        return complexity(self.space, self.native_top_k, self.n_blocks)

    def indices(self, split: str) -> NDArray[np.int64]:
        return self.split_indices.get(split, np.zeros(0, dtype=np.int64))

    def reward_NMX(self, sample_N: NDArray[np.int64], weights: RewardWeights) -> Tensor:
        """Returns the reward of every setting for these samples under every budget; NaN at holes."""
        rows_N = torch.from_numpy(np.asarray(sample_N))
        return reward(
            self.accuracy_SX[rows_N][:, None, :],
            self.latency_ms_SX[rows_N][:, None, :],
            self.budgets_ms_M[None, :, None],
            self.complexity_X,
            weights,
        )

    def mean_terms(self, sample_N: NDArray[np.int64], choice_NM: Tensor, weights: RewardWeights) -> dict[str, float]:
        """Returns the mean of each reward term over choices j * A + a, one for every sample and budget."""
        setting_NM = ChoiceGrid.of(self.space).setting_JA.flatten()[choice_NM]
        rows_N = torch.from_numpy(np.asarray(sample_N))
        terms = reward_terms(
            self.accuracy_SX[rows_N].gather(1, setting_NM),
            self.latency_ms_SX[rows_N].gather(1, setting_NM),
            self.budgets_ms_M,
            self.complexity_X[setting_NM],
            weights,
        )
        return {name: float(value.mean()) for name, value in terms.items()}

    def with_splits(self, split_indices: Mapping[str, NDArray[np.int64]]) -> ReplayTables:
        """Returns the same tables with samples split otherwise."""
        return replace(self, split_indices=split_indices)

    @classmethod
    def from_cache(cls, cache: Cache) -> ReplayTables:
        """Reads a whole cache. Tokens stay where they lie, the rest is copied to dense tensors."""
        frame = cache.samples
        image_ids = frame["image_id"].to_list() if "image_id" in frame.columns else list(cache.sample_ids)
        image_ids = [image or sample for image, sample in zip(image_ids, cache.sample_ids, strict=True)]
        tokens = cache.tokens
        return cls(
            space=cache.space,
            n_blocks=cache.manifest.n_blocks,
            native_top_k=cache.manifest.native_top_k,
            sample_ids=tuple(cache.sample_ids),
            cluster_S=_numbered(image_ids),
            dataset_S=_numbered(frame["dataset"].to_list()),
            split_indices={split: cache.indices(split) for split in ("train", "val", "test")},
            budgets_ms_M=torch.tensor(cache.budgets_ms, dtype=torch.float32),
            accuracy_SX=torch.from_numpy(np.asarray(cache.accuracy_SX)),
            latency_ms_SX=torch.from_numpy(np.asarray(cache.latency_ms_SX)),
            language_feature_SD=torch.from_numpy(np.asarray(cache.language_feature_SD)),
            token_STPMD=None if tokens is None else tokens.token_STPMD,
            token_present_STPM=None if tokens is None else np.asarray(tokens.present_STPM),
            fingerprint=cache.fingerprint,
            model_name=cache.manifest.model_name,
            model_fingerprint=cache.manifest.fingerprint,
        )


def _numbered(names: list[str]) -> NDArray[np.int64]:
    """Returns one number per entry, the same for equal names."""
    number = {name: place for place, name in enumerate(sorted(set(names)))}
    return np.array([number[name] for name in names], dtype=np.int64)


@dataclass(frozen=True)
class ChoiceGrid:
    """The two stages' choices laid over the settings: [J, A], with what exists and what each sample has."""

    setting_JA: Tensor  # index into settings; 0 where no such setting exists (see exists_JA)
    exists_JA: Tensor

    @classmethod
    def of(cls, space: KnobSpace) -> ChoiceGrid:
        """Pairs in the order of the heads: tier-major (tier, position), top-k-major (top_k, num_blocks)."""
        index_JA = setting_grid(space)
        return cls(index_JA.clamp(min=0), index_JA >= 0)

    def spread(self, value_BX: Tensor, fill: float | bool) -> Tensor:
        """Returns values of settings laid out as [B, J, A], `fill` where no setting exists."""
        value_BJA = value_BX[:, self.setting_JA.flatten()].unflatten(1, self.setting_JA.shape)
        return torch.where(self.exists_JA, value_BJA, torch.full((), fill, dtype=value_BX.dtype))


def budget_encoder_for(path: Path | None, d_model: int, seed: int) -> BudgetEncoder:
    """Returns the cache's own budget encoder, or one made from the seed where the cache has none."""
    return BudgetEncoder.from_seed(d_model, seed) if path is None else read_budget_encoder(path, d_model)
