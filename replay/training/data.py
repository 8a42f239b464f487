"""The data of a training run: the fitted bases, and the inputs of the splits `train` and `val`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

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
from .calibration import CALIBRATION, with_calibration_split
from .inputs import ReplayInputs, project_language, project_tokens, replay_inputs, settings_seen
from .log import TIE

FOLD_SEED = 0  # independent of the run's seeds, so that all of them read the same features
SELECTION_SHARE = 0.1  # of `train`, in a cache without `val`
SELECTION_MIN = 50  # training samples needed to set that share aside


@dataclass(frozen=True)
class TrainingData:
    """The frozen bases, and what they make of each split."""

    tables: ReplayTables
    encoder: BudgetEncoder
    budget_basis: VectorBasis
    language_basis: VectorBasis
    token_basis: TokenBasis
    inputs: Mapping[str, ReplayInputs]  # train, val
    explained: Mapping[str, list[float]]  # share of each target's variance, on held-out folds
    notes: tuple[str, ...]  # what a user should know about this cache


def require_trainable(tables: ReplayTables, where: str, *, allow_constant_accuracy: bool = False) -> None:
    """Raises CacheError, with the reason, for a cache that cannot train both controllers.

    Constant accuracy would train them on latency alone, which is rarely intended.
    """
    if tables.d_model == 0:
        raise CacheError(f"{where} has no language features, the input of Stage1: controllers cannot be trained on it")
    if tables.token_STPMD is None or tables.token_present_STPM is None:
        raise CacheError(
            f"{where} has no latency tokens, the input of Stage2: controllers cannot be trained on it (comparing "
            "baselines needs none); run `knobctl precompute` with the model to compute them"
        )
    if not len(tables.budgets_ms_M):
        raise CacheError(f"{where} has no budgets: both the reward and Stage1's input require one")
    if not len(tables.indices("train")):
        raise CacheError(f"{where} has no samples in split `train`")
    if not np.isfinite(tables.latency_ms_SX).any():
        raise CacheError(f"{where} has no latency_ms in any row: the reward requires it")
    accuracy = tables.accuracy_SX[np.isfinite(tables.accuracy_SX)]
    if not allow_constant_accuracy and len(accuracy) and bool((accuracy == accuracy[0]).all()):
        raise CacheError(
            f"{where} has accuracy {float(accuracy[0]):g} for every sample under every setting, so only latency could "
            "be learned: check its metric and answers (`knobctl inspect`), recompute accuracy with "
            "`knobctl rescore`, or train on latency alone with --allow-constant-accuracy"
        )


def split_for_selection(tables: ReplayTables) -> tuple[ReplayTables, list[str]]:
    """Returns tables with a `val` split, and notes for the user.

    If `val` is large enough, half of it becomes the split CALIBRATION. If the cache has none, a tenth of `train`,
    divided by image, becomes `val`; if `train` is too small for that, it also serves as `val`.
    """
    if len(tables.indices("val")):
        return with_calibration_split(tables), []
    train_S = tables.indices("train")
    if len(train_S) < SELECTION_MIN:
        note = (
            f"the cache has no `val` split and only {len(train_S)} training samples: they are also used for selection"
        )
        return _with_splits(tables, train_S, train_S), [note]
    fold_S = fold_of_samples(tables.cluster_S[train_S], round(1 / SELECTION_SHARE), FOLD_SEED)
    selecting = int((fold_S == 0).sum())
    if selecting > len(train_S) / 2:  # most samples share one image, and an image belongs to one split
        note = f"the cache has no `val` split and too few images for one: all {len(train_S)} training samples select"
        return _with_splits(tables, train_S, train_S), [note]
    note = f"the cache has no `val` split: {selecting} of {len(train_S)} training samples are set aside for selection"
    return _with_splits(tables, train_S[fold_S != 0], train_S[fold_S == 0]), [note]


def _with_splits(tables: ReplayTables, train: NDArray[np.int64], val: NDArray[np.int64]) -> ReplayTables:
    return tables.with_splits({**tables.split_indices, "train": train, "val": val})


@torch.no_grad()
def prepare_training(tables: ReplayTables, encoder: BudgetEncoder, config: TrainConfig) -> TrainingData:
    """Fits the bases on `train` and projects the splits; each training sample through fits without its fold.

    The tables must pass `require_trainable`. Raises CacheError for a sample that no setting is left for.
    """
    tables, notes = split_for_selection(replace(tables, weights=config.reward_weights))
    budgets_ms_M = torch.from_numpy(tables.budgets_ms_M)
    train_S = tables.indices("train")
    fold_S = fold_of_samples(tables.cluster_S[train_S], FOLDS, FOLD_SEED)
    budget_basis = fit_budget_basis(encoder, budgets_ms_M, BUDGET_FEATURES)
    language = fit_language_basis(tables, fold_S, LANGUAGE_FEATURES)
    token = fit_token_basis(tables, fold_S, TOKEN_FEATURES, config.basis_rows, FOLD_SEED)
    budget_MF = budget_basis(encoder(budgets_ms_M))
    inputs = {
        "train": replay_inputs(tables, train_S, *_cross_fitted(tables, train_S, fold_S, language, token), budget_MF)
    }
    val_S = tables.indices("val")
    inputs["val"] = replay_inputs(
        tables,
        val_S,
        project_language(tables, val_S, language.whole),
        project_tokens(tables, val_S, token.whole),
        budget_MF,
        settings_seen(tables)[1],
    )
    if CALIBRATION in tables.split_indices:  # a sample that cannot be used is found before training, not after it
        held_S = tables.indices(CALIBRATION)
        held = project_language(tables, held_S, language.whole), project_tokens(tables, held_S, token.whole)
        replay_inputs(tables, held_S, *held, budget_MF, settings_seen(tables)[1])
    if not _accuracy_depends_on_setting(tables, train_S):
        notes.append(
            "the accuracy of each training sample is the same under every setting: only latency can be learned"
        )
    if _rewards_tie(inputs["train"]):
        notes.append("the reward of each training sample is the same under every setting: there is nothing to choose")
    for split, made in inputs.items():
        if made.holes:
            notes.append(f"split {split}: {made.holes:,} (sample, setting) pairs have no outcome and are masked")
    explained = {"language": language.explained_F.tolist(), "token": token.explained_F.tolist()}
    return TrainingData(tables, encoder, budget_basis, language.whole, token.whole, inputs, explained, tuple(notes))


def _accuracy_depends_on_setting(tables: ReplayTables, sample_N: NDArray[np.int64]) -> bool:
    accuracy_NX = torch.from_numpy(tables.accuracy_SX[sample_N])
    known_NX = torch.isfinite(accuracy_NX)
    highest_N = accuracy_NX.masked_fill(~known_NX, -torch.inf).amax(dim=1)
    lowest_N = accuracy_NX.masked_fill(~known_NX, torch.inf).amin(dim=1)
    return bool((highest_N > lowest_N).any())


def _rewards_tie(inputs: ReplayInputs) -> bool:
    """Returns whether no request has two choices with different rewards."""
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
    language: FittedBasis[VectorBasis],
    token: FittedBasis[TokenBasis],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the training split's features, [N, F] and [N, J, M, F], each sample's from a fit to the other folds."""
    language_NF = torch.empty(len(train_S), LANGUAGE_FEATURES)
    shape = (len(train_S), tables.space.num_stage1_choices, len(tables.budgets_ms_M), TOKEN_FEATURES)
    token_NJMF = torch.empty(shape)
    for fold, (language_basis, token_basis) in enumerate(zip(language.by_fold, token.by_fold, strict=True)):
        rows_N = np.flatnonzero(fold_S == fold)
        language_NF[rows_N] = project_language(tables, train_S[rows_N], language_basis)
        token_NJMF[rows_N] = project_tokens(tables, train_S[rows_N], token_basis)
    return language_NF, token_NJMF
