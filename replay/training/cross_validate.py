"""`knobctl cross-validate`: compares trained controllers with baselines, testing on every sample of a cache.

A fifth of a cache is too small a test set for differences of 0.01 in reward. Here the images are divided into folds;
controllers and baselines fitted on the other folds decide for the samples of each fold, and the decisions of all folds
are measured together. No policy is tested on a sample that it was fitted or selected on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...controllers.budget_encoder import BudgetEncoder
from ...controllers.two_stage import TwoStagePolicy
from ...data.cache.accuracy import accuracy_warnings
from ...data.cache.reader import open_cache
from ...data.errors import KnobctlError
from ...data.progress import SILENT, Progress
from ...data.protocols import Policy
from ...devices import find_device
from ..bases.folds import fold_of_samples
from ..evaluation.bootstrap import DEFAULT_RESAMPLES
from ..evaluation.build_report import cache_record, cluster_column, report_of_choices
from ..evaluation.report import EvaluationReport
from ..evaluation.request_stats import RequestSet, latency_runs
from ..evaluation.warnings import cluster_warnings, hole_warnings, token_warnings
from ..policies.ablations import ablations
from ..policies.decide import decide
from ..policies.lookup import BudgetTable
from ..policies.registry import DEFAULT_BASELINES, build_baselines
from ..recipes import TrainConfig
from ..tables import ReplayTables, budget_encoder_for
from .data import prepare_training, require_trainable
from .train import controllers_of
from .trainer import Trainer

SUBJECT = "controllers"
ALL = "all"  # the split of the report: every sample with outcomes
DEFAULT_FOLDS = 5


@dataclass(frozen=True)
class FoldResult:
    """The decisions of one fold's policies for its test samples, and the result of training each seed."""

    test_N: NDArray[np.int64]
    chosen: Mapping[str, NDArray[np.int64]]  # [N, M] by policy
    training: Mapping[str, dict[str, Any]]  # by name of the controllers


def fold_splits(
    cluster_S: NDArray[np.int64], sample_N: NDArray[np.int64], folds: int, fold_seed: int
) -> list[dict[str, NDArray[np.int64]]]:
    """Returns train, val and test for every fold; all samples of an image are in one split, and tested once.

    `val` is half of the fold after the tested one, so that 5 folds give the same shares as precompute: 70 % train, 10 %
    val, 20 % test. Raises KnobctlError for fewer than 2 folds, or fewer than two images per fold.
    """
    if folds < 2:
        raise KnobctlError(f"--folds is {folds}: give at least 2, one to test and one to train on")
    images = len(np.unique(cluster_S[sample_N]))
    if images < 4:
        raise KnobctlError(f"cross-validation needs at least 4 images with outcomes, and the cache has {images}")
    if images < 2 * folds:
        raise KnobctlError(
            f"{images} images are too few for {folds} folds, each with one image to test and one to select on: "
            f"give --folds {images // 2} or fewer"
        )
    half_N = fold_of_samples(cluster_S[sample_N], 2 * folds, fold_seed)
    splits = []
    for fold in range(folds):
        test_N = half_N // 2 == fold
        val_N = half_N == (2 * fold + 2) % (2 * folds)
        splits.append({"train": sample_N[~test_N & ~val_N], "val": sample_N[val_N], "test": sample_N[test_N]})
    return splits


def cross_validate(
    cache_path: str | Path,
    config: TrainConfig,
    *,
    folds: int = DEFAULT_FOLDS,
    fold_seed: int = 0,
    budgets_ms: Sequence[float] | None = None,
    baselines: Sequence[str] | None = None,
    with_ablations: bool = False,
    resamples: int = DEFAULT_RESAMPLES,
    seed: int = 0,
    progress: Progress = SILENT,
) -> EvaluationReport:
    """Trains on the other images of every fold and returns one report on all decisions.

    Its subject, `controllers`, is the mean over the seeds; with several, each is also reported, as `seed-<seed>`.
    Baselines are fitted on the same samples as the controllers. Intervals resample images with the fitted policies held
    fixed: they cover the choice of test images, not that of training images. The splits of the cache are not used.

    Args:
        config: the recipe, with its seeds; its reward is also that of the report.
        folds: how many; each is tested once.
        fold_seed: of the division into folds.
        budgets_ms: budgets to report on; None: all of the cache.
        baselines: names of baselines; None: the usual ones.
        with_ablations: also report each stage and each knob alone.
        resamples: of the bootstrap.
        seed: of the bootstrap and the random baseline.
        progress: receives a step for each epoch, over all folds.

    Raises:
        KnobctlError: too few images, an unknown baseline, or a cache that cannot train controllers.
    """
    find_device(config.device)
    cache = open_cache(cache_path)
    tables = ReplayTables.from_cache(cache, config.reward_weights)
    rows = np.sort(np.concatenate([tables.indices(split) for split in ("train", "val", "test")]))
    require_trainable(
        tables.with_splits({"train": rows}),
        f"cache {cache_path}",
        allow_constant_accuracy=config.allow_constant_accuracy,
    )
    everything = tables.with_splits({ALL: rows})
    sample_N = everything.measured(ALL)
    budget_M = tables.grid_indices(budgets_ms)
    encoder = budget_encoder_for(cache.budget_encoder_path, tables.d_model, seed=0)
    split_folds = fold_splits(tables.cluster_S, sample_N, folds, fold_seed)
    results = []
    with progress.steps("epochs", sum(config.epochs_for(len(splits["train"])) for splits in split_folds)) as advance:
        for splits in split_folds:
            policies, training = fold_policies(
                tables.with_splits(splits),
                encoder,
                config,
                baselines=baselines or DEFAULT_BASELINES,
                with_ablations=with_ablations,
                seed=seed,
                advance=advance,
            )
            test_N = splits["test"]
            chosen = {policy.name: decide(policy, everything, test_N, budget_M) for policy in policies}
            results.append(FoldResult(test_N, chosen, training))
    report = report_of_choices(
        RequestSet.of(everything, sample_N, budget_M, latency_runs(cache, sample_N)),
        pooled(results, sample_N),
        split=ALL,
        subjects=(SUBJECT,),
        means={} if SUBJECT in results[0].training else {SUBJECT: list(results[0].training)},
        cluster_by=cluster_column(cache),
        resamples=resamples,
        seed=seed,
    )
    report.folds = folds
    report.warnings[:0] = [
        *cache.warnings,
        *accuracy_warnings(cache),
        *cluster_warnings(cache),
        *hole_warnings(everything, ALL),
        *token_warnings(everything, ALL),
        *start_warnings(results),
    ]
    report.cache = cache_record(cache)
    settings = {**config.to_dict(), "fold_seed": fold_seed}
    report.controllers = {
        name: {"settings": settings, "folds": [result.training[name] for result in results]}
        for name in results[0].training
    }
    return report


def pooled(results: Sequence[FoldResult], sample_N: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    """Returns the settings that each policy chose for all samples, [N, M], in the order of `sample_N`."""
    place = {int(sample): row for row, sample in enumerate(sample_N)}
    chosen = {}
    for name in results[0].chosen:
        setting_NM = np.full((len(sample_N), results[0].chosen[name].shape[1]), -1, dtype=np.int64)
        for result in results:
            setting_NM[[place[int(sample)] for sample in result.test_N]] = result.chosen[name]
        assert (setting_NM >= 0).all(), "every sample must be in one test split"
        chosen[name] = setting_NM
    return chosen


def start_warnings(results: Sequence[FoldResult]) -> list[str]:
    """Returns a warning for each seed that kept its warm start in some folds."""
    warnings = []
    for name in results[0].training:
        kept = sum(result.training[name]["best_epoch"] == 0 for result in results)
        if kept:
            warnings.append(
                f"{name}: in {kept} of {len(results)} folds no checkpoint beat the warm start on val, and the "
                "controllers choose like a look-up table per dataset"
            )
    return warnings


def fold_policies(
    tables: ReplayTables,
    encoder: BudgetEncoder,
    config: TrainConfig,
    *,
    baselines: Sequence[str],
    with_ablations: bool,
    seed: int,
    advance: Callable[[], None],
) -> tuple[list[Policy], dict[str, dict[str, Any]]]:
    """Returns controllers and baselines fitted on the tables' `train` and selected on `val`, and results of training.

    Never reads `test`. Calls `advance` after each epoch.
    """
    fitted = build_baselines(baselines, tables, seed=seed)  # first, so that a misspelt name is found before training
    trainer = Trainer(prepare_training(tables, encoder, config), config)
    while not trainer.done:
        trainer.run_epoch()
        if trainer.evaluation_due:
            trainer.evaluate()
        advance()
    policies: list[Policy] = []
    training = {}
    for index, trained in enumerate(config.seeds):
        name = SUBJECT if len(config.seeds) == 1 else f"seed-{trained}"
        policies.append(TwoStagePolicy(controllers_of(trainer, index), name))
        training[name] = {
            "samples": {split: len(trainer.data.tables.indices(split)) for split in ("train", "val", "test")},
            "best_epoch": int(trainer.best_epoch_N[index]),  # 0: no checkpoint beat the warm start
            "val_reward": float(trainer.best_reward_N[index]),
        }
    if with_ablations:
        policies += [part for policy in list(policies) for part in ablations(policy, BudgetTable(tables))]
    return policies + fitted, training
