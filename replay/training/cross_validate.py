"""`knobctl cross-validate`: is what training gives better than the baselines, with every sample of a cache as a test?

A fifth of a cache is a small test set: differences of a hundredth of reward drown in it. Here the images are divided
into folds; each fold is tested by controllers and baselines that were fitted on the others, and all folds' decisions
are measured together. Nothing is fitted or selected on a sample that it is tested on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...controllers.budget_encoder import BudgetEncoder
from ...controllers.two_stage import TwoStagePolicy
from ...data.cache import accuracy_warnings, open_cache
from ...data.errors import KnobctlError
from ...data.protocols import Policy
from ...devices import find_device
from ..bases.fit import fold_of_samples
from ..evaluation.bootstrap import DEFAULT_RESAMPLES
from ..evaluation.build_report import cache_record, clustering, hole_warnings, measure, token_warnings
from ..evaluation.report import EvaluationReport
from ..evaluation.stats import Problem, latency_runs
from ..policies.ablations import ablations
from ..policies.decide import decide
from ..policies.lookup import BudgetTable
from ..policies.registry import DEFAULT_BASELINES, build_baselines
from ..policies.reward_table import RewardTable
from ..recipes import TrainConfig
from ..tables import ReplayTables, budget_encoder_for
from .data import make_bundle, require_trainable
from .train import controllers_of
from .trainer import Trainer

ALL = "all"  # the split of the report: every sample that has outcomes
DEFAULT_FOLDS = 5


@dataclass(frozen=True)
class FoldResult:
    """What one fold's policies chose for its test samples, and how each seed's training ended."""

    test_N: NDArray[np.int64]
    chosen: Mapping[str, NDArray[np.int64]]  # [N, M] by policy
    training: Mapping[str, dict[str, Any]]  # by the name of the seed's controllers


def fold_splits(
    cluster_S: NDArray[np.int64], sample_N: NDArray[np.int64], folds: int, fold_seed: int
) -> list[dict[str, NDArray[np.int64]]]:
    """Returns train, val and test for every fold: all samples of an image together, each sample in one test split.

    `val` is half of the fold after the test one, so that 5 folds give the shares of precompute's split: 70 % train,
    10 % val, 20 % test. Raises KnobctlError for fewer than 2 folds, or fewer images than half folds.
    """
    if folds < 2:
        raise KnobctlError(f"--folds is {folds}: at least 2 are needed, one to test and one to train on")
    images = len(np.unique(cluster_S[sample_N]))
    if images < 4:
        raise KnobctlError(f"cross-validation needs at least 4 images with outcomes, and the cache has {images}")
    if images < 2 * folds:
        raise KnobctlError(
            f"{images} images are too few for {folds} folds, each of which needs one to test and one to select on: "
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
    progress: Callable[[int, int], None] | None = None,
) -> EvaluationReport:
    """Trains on every fold's other images and returns one report of all decisions, a subject for each seed.

    Baselines are fitted on the same samples as the controllers. Intervals resample images and take what was fitted as
    given: they say how far figures would move with other test images, not with other training images. The cache's own
    splits are not used.

    Args:
        config: the recipe, with its seeds; the reward of the report is the one that it trains on.
        progress: gets (epochs done, epochs in all) of all folds together.

    Raises:
        KnobctlError: too few images, or a cache that cannot train controllers.
    """
    find_device(config.device)
    cache = open_cache(Path(cache_path))
    tables = ReplayTables.from_cache(cache)
    rows = np.sort(np.concatenate([tables.indices(split) for split in ("train", "val", "test")]))
    require_trainable(
        tables.with_splits({"train": rows}),
        f"cache {cache_path}",
        allow_constant_accuracy=config.allow_constant_accuracy,
    )
    table = RewardTable(
        tables.with_splits({ALL: rows}), tuple(cache.samples["dataset"].to_list()), config.reward_weights
    )
    sample_N = table.indices(ALL)
    budget_M = tuple(sorted(set(table.budget_rows(budgets_ms or table.budgets_ms_M).tolist())))
    encoder = budget_encoder_for(cache.budget_encoder_path, tables.d_model, seed=0)
    results = []
    for fold, splits in enumerate(fold_splits(tables.cluster_S, sample_N, folds, fold_seed)):
        policies, training = fold_policies(
            replace(table, tables=tables.with_splits(splits)),
            encoder,
            config,
            where=f"fold {fold + 1} of {folds} of cache {cache_path}",
            baselines=baselines or DEFAULT_BASELINES,
            with_ablations=with_ablations,
            seed=seed,
            progress=None if progress is None else _overall(progress, fold, folds),
        )
        test_N = splits["test"]
        chosen = {policy.name: decide(policy, table, test_N, budget_M) for policy in policies}
        results.append(FoldResult(test_N, chosen, training))
    cluster_by, cluster_warnings = clustering(cache)
    report = measure(
        Problem.of(table, sample_N, budget_M, latency_runs(cache, sample_N)),
        pooled(results, sample_N),
        split=ALL,
        subjects=list(results[0].training),
        cluster_by=cluster_by,
        resamples=resamples,
        seed=seed,
    )
    report.folds = folds
    report.warnings[:0] = [
        *cache.warnings,
        *accuracy_warnings(cache),
        *cluster_warnings,
        *hole_warnings(table, ALL),
        *token_warnings(table, ALL),
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
    """Returns every policy's settings for all samples, [N, M], in the order of `sample_N`."""
    place = {int(sample): row for row, sample in enumerate(sample_N)}
    chosen = {}
    for name in results[0].chosen:
        setting_NM = np.full((len(sample_N), results[0].chosen[name].shape[1]), -1, dtype=np.int64)
        for result in results:
            setting_NM[[place[int(sample)] for sample in result.test_N]] = result.chosen[name]
        assert (setting_NM >= 0).all(), "every sample is in one test split"
        chosen[name] = setting_NM
    return chosen


def start_warnings(results: Sequence[FoldResult]) -> list[str]:
    """Says for which seeds, and in how many folds, nothing that was learned replaced the start of training."""
    said = []
    for name in results[0].training:
        kept = sum(result.training[name]["best_epoch"] == 0 for result in results)
        if kept:
            said.append(
                f"{name}: in {kept} of {len(results)} folds nothing learned earned more on val than the start, a "
                "look-up table per dataset, which stands for it there"
            )
    return said


def fold_policies(
    table: RewardTable,
    encoder: BudgetEncoder,
    config: TrainConfig,
    *,
    where: str,
    baselines: Sequence[str],
    with_ablations: bool,
    seed: int,
    progress: Callable[[int, int], None] | None,
) -> tuple[list[Policy], dict[str, dict[str, Any]]]:
    """Returns controllers and baselines fitted on the table's `train` and selected on `val`, and how training ended.

    Nothing of `test` is read.
    """
    fitted = build_baselines(baselines, table, seed=seed)  # first: a mistaken name should not cost a training run
    trainer = Trainer(make_bundle(table.tables, encoder, config, where), config)
    while not trainer.done:
        trainer.run_epoch()
        if trainer.evaluation_due:
            trainer.evaluate()
        if progress is not None:
            progress(trainer.epoch, trainer.epochs)
    policies: list[Policy] = []
    training = {}
    for index, trained in enumerate(config.seeds):
        name = "controllers" if len(config.seeds) == 1 else f"seed-{trained}"
        policies.append(TwoStagePolicy(controllers_of(trainer, index), name))
        training[name] = {
            "samples": {split: len(table.tables.indices(split)) for split in ("train", "val", "test")},
            "best_epoch": int(trainer.best_epoch_N[index]),  # 0: the warm start was kept
            "val_reward": float(trainer.best_reward_N[index]),
        }
    if with_ablations:
        policies += [part for policy in list(policies) for part in ablations(policy, BudgetTable(table))]
    return policies + fitted, training


def _overall(progress: Callable[[int, int], None], fold: int, folds: int) -> Callable[[int, int], None]:
    """Returns what turns a fold's (epochs done, epochs in all) into that of all folds."""
    return lambda done, total: progress(fold * total + done, folds * total)
