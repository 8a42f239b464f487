"""Everything a training run reads, made from a cache's tables: fitted bases and the inputs of each split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ...controllers.bases import TokenBasis, VectorBasis
from ...controllers.budget_encoder import BudgetEncoder
from ...controllers.stage1 import BUDGET_FEATURES, LANGUAGE_FEATURES
from ...controllers.stage2 import TOKEN_FEATURES
from ...data.errors import CacheError
from ..bases.budget import fit_budget_basis
from ..bases.folds import FOLDS, FittedBasis, fold_of_samples
from ..bases.language import fit_language_basis
from ..bases.token import fit_token_basis
from ..recipes import TrainConfig
from ..tables import ReplayTables
from .inputs import ReplayInputs, project_language, project_tokens, replay_inputs, settings_seen
from .log import TIE

FOLD_SEED = 0  # folds belong to the cache, not to a run: all seeds read the same features
SELECTION_SHARE = 0.1
SELECTION_MIN = 50


@dataclass(frozen=True)
class TrainingBundle:
    """Frozen bases and what the loop gathers from, per split."""

    tables: ReplayTables
    encoder: BudgetEncoder
    budget_basis: VectorBasis
    language_basis: VectorBasis
    token_basis: TokenBasis
    inputs: Mapping[str, ReplayInputs]  # train, val
    explained: Mapping[str, list[float]]  # per target, on folds left out
    notes: tuple[str, ...]  # what a user should know of this cache


def require_trainable(tables: ReplayTables, where: str, *, allow_constant_accuracy: bool = False) -> None:
    """Raises CacheError, with the reason, for a cache that cannot train both controllers.

    A cache whose accuracy is the same throughout trains them on latency alone, which is seldom meant.
    """
    if tables.d_model == 0:
        raise CacheError(
            f"{where} has no language features: Stage1 has no input, so controllers cannot be trained on it"
        )
    if tables.token_STPMD is None or tables.token_present_STPM is None:
        raise CacheError(
            f"{where} has no latency tokens: Stage2 has no input, so controllers cannot be trained on it "
            "(baselines and their comparison need none); precompute with the model to get them"
        )
    if not len(tables.budgets_ms_M):
        raise CacheError(f"{where} has no budgets: neither a reward nor Stage1's input can be had without one")
    if not len(tables.indices("train")):
        raise CacheError(f"{where} has no samples in split `train`: there is nothing to learn from")
    if not bool(torch.isfinite(tables.latency_ms_SX).any()):
        raise CacheError(f"{where} has no latency_ms at all: the reward needs it")
    accuracy = tables.accuracy_SX[torch.isfinite(tables.accuracy_SX)]
    if not allow_constant_accuracy and len(accuracy) and bool((accuracy == accuracy[0]).all()):
        raise CacheError(
            f"{where} has accuracy {float(accuracy[0]):g} for every sample under every setting, so nothing about "
            "answers can be learned: check its metric and answers (`knobctl inspect`), recompute accuracy with "
            "`knobctl rescore`, or train on latency alone with --allow-constant-accuracy"
        )


def split_for_selection(tables: ReplayTables) -> tuple[ReplayTables, list[str]]:
    """Returns tables that have a `val` split; without one, a tenth of `train` (by image) stands in.

    With too few samples for that, the training split selects for itself.
    """
    if len(tables.indices("val")):
        return tables, []
    train_S = tables.indices("train")
    if len(train_S) < SELECTION_MIN:
        note = f"the cache has no `val` split and {len(train_S)} training samples: selection uses these themselves"
        return _with_splits(tables, train_S, train_S), [note]
    fold_S = fold_of_samples(tables.cluster_S[train_S], round(1 / SELECTION_SHARE), FOLD_SEED)
    selecting = int((fold_S == 0).sum())
    if selecting > len(train_S) / 2:  # nearly all samples are of one image, which no split may cut
        note = f"the cache has no `val` split and too few images to make one of: all {len(train_S)} select themselves"
        return _with_splits(tables, train_S, train_S), [note]
    note = f"the cache has no `val` split: {selecting} of {len(train_S)} training samples select instead"
    return _with_splits(tables, train_S[fold_S != 0], train_S[fold_S == 0]), [note]


def _with_splits(tables: ReplayTables, train: NDArray[np.int64], val: NDArray[np.int64]) -> ReplayTables:
    return tables.with_splits({**tables.split_indices, "train": train, "val": val})


@torch.no_grad()
def make_bundle(tables: ReplayTables, encoder: BudgetEncoder, config: TrainConfig, where: str) -> TrainingBundle:
    """Fits the bases on `train` and projects the splits; training samples through fits that did not see them."""
    require_trainable(tables, where, allow_constant_accuracy=config.allow_constant_accuracy)
    tables, notes = split_for_selection(tables)
    train_S = tables.indices("train")
    fold_S = fold_of_samples(tables.cluster_S[train_S], FOLDS, FOLD_SEED)
    budget_basis = fit_budget_basis(encoder, tables.budgets_ms_M, BUDGET_FEATURES)
    language = fit_language_basis(tables, fold_S, LANGUAGE_FEATURES)
    token = fit_token_basis(tables, fold_S, TOKEN_FEATURES, config.basis_rows, FOLD_SEED)
    budget_MF = budget_basis(encoder(tables.budgets_ms_M))
    inputs = {
        "train": replay_inputs(
            tables, train_S, config.reward_weights, *_cross_fitted(tables, train_S, fold_S, language, token), budget_MF
        )
    }
    assert isinstance(language.whole, VectorBasis)
    assert isinstance(token.whole, TokenBasis)
    val_S = tables.indices("val")
    inputs["val"] = replay_inputs(
        tables,
        val_S,
        config.reward_weights,
        project_language(tables, val_S, language.whole),
        project_tokens(tables, val_S, token.whole),
        budget_MF,
        settings_seen(tables)[1],
    )
    if not _accuracy_depends_on_setting(tables, train_S):
        notes.append("accuracy is the same under every setting for each training sample: only latency can be learned")
    if _rewards_tie(inputs["train"]):
        notes.append("every setting earns each training sample the same reward: there is nothing to choose")
    for split, made in inputs.items():
        if made.holes:
            notes.append(f"split {split}: {made.holes:,} (sample, setting) pairs are holes, masked for their samples")
    explained = {"language": language.explained_F.tolist(), "token": token.explained_F.tolist()}
    return TrainingBundle(tables, encoder, budget_basis, language.whole, token.whole, inputs, explained, tuple(notes))


def _accuracy_depends_on_setting(tables: ReplayTables, sample_N: NDArray[np.int64]) -> bool:
    accuracy_NX = tables.accuracy_SX[torch.from_numpy(sample_N)]
    known_NX = torch.isfinite(accuracy_NX)
    highest_N = accuracy_NX.masked_fill(~known_NX, -torch.inf).amax(dim=1)
    lowest_N = accuracy_NX.masked_fill(~known_NX, torch.inf).amin(dim=1)
    return bool((highest_N > lowest_N).any())


def _rewards_tie(inputs: ReplayInputs) -> bool:
    """Whether no request has two choices that differ in reward."""
    for budget in range(inputs.budgets):
        highest_NJA = lowest_NJA = inputs.reward_NMJA[:, budget]
        if inputs.allowed_NMJ is not None and inputs.allowed_NJA is not None:
            allowed_NJA = inputs.allowed_NMJ[:, budget, :, None] & inputs.allowed_NJA
            highest_NJA = highest_NJA.masked_fill(~allowed_NJA, -torch.inf)
            lowest_NJA = lowest_NJA.masked_fill(~allowed_NJA, torch.inf)
        if bool((highest_NJA.flatten(1).amax(dim=1) - lowest_NJA.flatten(1).amin(dim=1) >= TIE).any()):
            return False
    return True


def _cross_fitted(
    tables: ReplayTables,
    train_S: NDArray[np.int64],
    fold_S: NDArray[np.int64],
    language: FittedBasis,
    token: FittedBasis,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the training split's features, [N, F] and [N, J, M, F], each sample's from fits of other folds."""
    language_NF = torch.empty(len(train_S), LANGUAGE_FEATURES)
    shape = (len(train_S), tables.stage1_choices, len(tables.budgets_ms_M), TOKEN_FEATURES)
    token_NJMF = torch.empty(shape)
    for fold, (vector_basis, token_basis) in enumerate(zip(language.by_fold, token.by_fold, strict=True)):
        assert isinstance(vector_basis, VectorBasis)
        assert isinstance(token_basis, TokenBasis)
        mine_N = np.flatnonzero(fold_S == fold)
        language_NF[mine_N] = project_language(tables, train_S[mine_N], vector_basis)
        token_NJMF[mine_N] = project_tokens(tables, train_S[mine_N], token_basis)
    return language_NF, token_NJMF
