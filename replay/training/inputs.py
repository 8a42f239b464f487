"""The input of a training step: features, rewards and masks of one split, computed once.

The bases are frozen, so the features of a sample do not change during training, and a step reads about 100 numbers per
draw instead of d_model. Shapes: N samples of the split, M budgets, J choices of Stage1, A of Stage2, F features, H
place code.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...controllers.bases import TokenBasis, VectorBasis
from ...controllers.stage2 import place_codes
from ...data.errors import CacheError
from ..tables import ReplayTables

SAMPLES_PER_READ = 64


@dataclass
class ReplayInputs:
    """The tensors of one split that training steps and evaluations index."""

    language_NF: Tensor
    budget_MF: Tensor
    token_NJMF: Tensor
    place_JH: Tensor
    reward_NMJA: Tensor  # 0 where not allowed
    allowed_NMJ: Tensor | None  # None: every choice is allowed for every sample
    allowed_NJA: Tensor | None
    holes: int  # (sample, setting) pairs masked for lack of an outcome or a token

    def __len__(self) -> int:
        return len(self.language_NF)

    @property
    def budgets(self) -> int:
        return len(self.budget_MF)

    def to(self, device: torch.device | str) -> ReplayInputs:
        moved: dict[str, Any] = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved)


def project_language(tables: ReplayTables, sample_N: NDArray[np.int64], basis: VectorBasis) -> Tensor:
    """Returns Stage1's language features, [N, F]."""
    return basis(torch.from_numpy(tables.language_feature_SD[sample_N]))


def project_tokens(tables: ReplayTables, sample_N: NDArray[np.int64], basis: TokenBasis) -> Tensor:
    """Returns Stage2's token features, [N, J, M, F], 0 for missing tokens, which are masked.

    Tokens may take many GB on disk: they are read once, in slices of samples.
    """
    assert tables.token_STPMD is not None, "require_trainable refuses such tables"
    tiers, positions, budgets = tables.token_STPMD.shape[1:4]
    feature_NTPMF = torch.empty(len(sample_N), tiers, positions, budgets, basis.features)
    for start in range(0, len(sample_N), SAMPLES_PER_READ):
        part_N = sample_N[start : start + SAMPLES_PER_READ]
        token_NTPMD = torch.from_numpy(np.ascontiguousarray(tables.token_STPMD[part_N])).float()
        for position in range(positions):
            feature_NTPMF[start : start + len(part_N), :, position] = basis.project(
                token_NTPMD[:, :, position], position
            )
    return feature_NTPMF.nan_to_num_(nan=0.0).flatten(1, 2)  # missing tokens are NaN


def replay_inputs(
    tables: ReplayTables,
    sample_N: NDArray[np.int64],
    language_NF: Tensor,
    token_NJMF: Tensor,
    budget_MF: Tensor,
    trained_JA: Tensor | None = None,
) -> ReplayInputs:
    """Returns the inputs of a split; choices without an outcome or a token are masked and counted.

    Args:
        trained_JA: choices that occur in the training split. The others are masked too, because controllers never
            choose them.

    Raises:
        CacheError: a sample has no choice left under some budget, or a latency without a finite reward.
    """
    assert tables.token_present_STPM is not None, "require_trainable refuses such tables"
    exists_JA = torch.from_numpy(tables.space.setting_JA >= 0)
    reward_NMX = tables.reward_NMX(sample_N)
    _refuse_infinite(tables, sample_N, reward_NMX)
    reward_NMJA = torch.from_numpy(tables.space.by_choice(reward_NMX, 0.0)).nan_to_num_(nan=0.0)
    known_NJA = torch.from_numpy(tables.space.by_choice(tables.available_SX[sample_N], False))
    if trained_JA is not None:
        known_NJA &= trained_JA
    token_NJM = torch.from_numpy(tables.token_present_STPM[sample_N]).flatten(1, 2)
    allowed_NMJ = known_NJA.any(dim=2)[:, None, :] & token_NJM.transpose(1, 2)
    if not bool(allowed_NMJ.any(dim=2).all()):
        sample, budget = (~allowed_NMJ.any(dim=2)).nonzero()[0].tolist()
        raise CacheError(
            f"sample {tables.sample_ids[sample_N[sample]]!r} has no setting left under budget "
            f"{float(tables.budgets_ms_M[budget]):g} ms: it has no outcome with accuracy, latency and latency token; "
            "add its rows or remove the sample"
        )
    usable_NJA = known_NJA & token_NJM.any(dim=2)[:, :, None]
    holes = int((exists_JA & ~usable_NJA).sum())
    whole = holes == 0 and bool(exists_JA.all()) and bool(token_NJM.all())
    # A row without any known choice of Stage2 is left unmasked, because the softmax of a fully masked row is undefined;
    # Stage1's mask excludes it.
    allowed_NJA = known_NJA | ~known_NJA.any(dim=2, keepdim=True)
    return ReplayInputs(
        language_NF=language_NF,
        budget_MF=budget_MF,
        token_NJMF=token_NJMF,
        place_JH=place_codes(len(tables.space.tiers), len(tables.space.insertion_positions)),
        reward_NMJA=reward_NMJA,
        allowed_NMJ=None if whole else allowed_NMJ,
        allowed_NJA=None if whole else allowed_NJA,
        holes=holes,
    )


def _refuse_infinite(tables: ReplayTables, sample_N: NDArray[np.int64], reward_NMX: NDArray[np.float32]) -> None:
    """Raises CacheError for a latency too large for a finite reward, such as a time-out recorded as a latency."""
    infinite_NX = tables.available_SX[sample_N] & ~np.isfinite(reward_NMX).all(axis=1)
    if infinite_NX.any():
        sample, setting = np.argwhere(infinite_NX)[0].tolist()
        latency_ms = float(tables.latency_ms_SX[sample_N[sample], setting])
        raise CacheError(
            f"sample {tables.sample_ids[sample_N[sample]]!r} under {tables.space.settings[setting]} has a latency of "
            f"{latency_ms:g} ms, too large for a finite reward: record a latency that was not measured as null"
        )


def settings_seen(tables: ReplayTables) -> tuple[Tensor, Tensor]:
    """Returns which choices of Stage1 [J] and of both stages [J, A] occur in `train`; the others get probability 0."""
    assert tables.token_present_STPM is not None, "require_trainable refuses such tables"
    train_S = tables.indices("train")
    known_JA = torch.from_numpy(tables.space.by_choice(tables.available_SX[train_S], False).any(axis=0))
    token_J = torch.from_numpy(tables.token_present_STPM[train_S].any(axis=(0, 3))).flatten()
    known_JA &= token_J[:, None]
    return known_JA.any(dim=1), known_JA
