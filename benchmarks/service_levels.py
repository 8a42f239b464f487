"""Checks the guarantee of service levels on generated populations whose true share is known, and what a level costs.

Controllers are trained once on each population. Then calibration images are drawn many times from a large pool, every
level is calibrated on each draw, and the share of requests kept in the whole pool is compared with the level.

    python benchmarks/service_levels.py > benchmarks/results/service-levels.md

With --cache, the same controllers are calibrated on one half of a cache's other images and tested on the other half,
for many divisions into halves. There the true share is not known: the share in a test half has the noise of its size.

    python benchmarks/service_levels.py --cache bundled:nano
"""

from __future__ import annotations

import time
from typing import NamedTuple

import click
import numpy as np
from numpy.typing import NDArray
from tables import markdown

from knobctl.controllers.budget_encoder import BudgetEncoder, read_budget_encoder
from knobctl.controllers.checkpoint import Controllers
from knobctl.controllers.service_levels import FACTORS, LEVELS
from knobctl.controllers.two_stage import TwoStagePolicy
from knobctl.data.cache.reader import open_cache
from knobctl.data.generated.population import STRUCTURES, GeneratedConfig, generate
from knobctl.replay.bases.folds import fold_of_samples
from knobctl.replay.latency_fit import fit_expected_latency
from knobctl.replay.policies.decide import decide
from knobctl.replay.recipes import recipe
from knobctl.replay.reward import RewardWeights
from knobctl.replay.tables import ReplayTables
from knobctl.replay.training.calibration import (
    calibrated_levels,
    can_be_met,
    decision_ms,
    drawn_requests,
    kept_share,
)
from knobctl.replay.training.data import prepare_training
from knobctl.replay.training.train import controllers_of
from knobctl.replay.training.trainer import Trainer
from knobctl.tests.support.replay_inputs import encoder_for, tables_of


class Pool(NamedTuple):
    """What the controllers do for every request of the pool under every factor: F factors, N samples, M budgets."""

    tables: ReplayTables
    sample_N: NDArray[np.int64]
    controllers_ms: float
    kept_FNM: NDArray[np.bool_]
    reward_F: NDArray[np.float64]  # mean over the pool
    plain_reward: float
    plain_share: float


@click.command(help=__doc__)
@click.option("--structure", "structures", multiple=True, default=("linear", "near_folded"), show_default=True)
@click.option("--train", default=1500, show_default=True, help="Training images.")
@click.option("--pool", default=6000, show_default=True, help="Images of the pool: the population.")
@click.option("--images", default=400, show_default=True, help="Images of a calibration.")
@click.option(
    "--draws", default=100, show_default=True, help="Calibrations of each population, or divisions of a cache."
)
@click.option("--cache", "cache_path", help="A cache, instead of generated populations.")
def main(structures: tuple[str, ...], train: int, pool: int, images: int, draws: int, cache_path: str | None) -> None:
    start = time.perf_counter()
    if cache_path is not None:
        click.echo(_on_cache(cache_path, draws))
        click.echo(f"\n{time.perf_counter() - start:.0f} s")
        return
    rows: list[dict[str, str]] = []
    for structure in structures:
        if structure not in STRUCTURES:
            raise click.BadParameter(f"unknown structure {structure}: {', '.join(STRUCTURES)}")
        rows += _rows(structure, _pool(structure, train, pool), images, draws)
    click.echo(
        f"{draws} calibrations of {images} images each, drawn from {pool:,} images with 4 budgets; controllers trained "
        f"once on {train:,} images (d_model 64). Share: requests that keep their budget among those that some setting "
        "can meet, in the whole pool. A level may be missed in at most 5 % of calibrations, with the chance of "
        f"{draws} draws.\n"
    )
    click.echo(markdown(("levels", row) for row in rows))
    click.echo(f"\n{time.perf_counter() - start:.0f} s")


def _pool(structure: str, train: int, pool: int) -> Pool:
    tables = tables_of(generate(GeneratedConfig(train=train, val=400, test=pool, d_model=64, structure=structure)))
    return _pool_of(tables, encoder_for(tables))


def _pool_of(tables: ReplayTables, encoder: BudgetEncoder) -> Pool:
    """Trains controllers on the split train, and runs them on the split test under every factor."""
    controllers = _trained(tables, encoder)
    sample_N = tables.measured("test")
    controllers_ms = decision_ms(TwoStagePolicy(controllers), tables)
    kept, reward = [], []
    for factor in (None, *FACTORS):
        setting_NM = decide(
            TwoStagePolicy(controllers, budget_factor=factor), tables, sample_N, range(len(tables.budgets_ms_M))
        )
        latency_ms_NM = tables.latency_ms_SX[sample_N[:, None], setting_NM]
        kept.append(latency_ms_NM + controllers_ms <= tables.budgets_ms_M)
        reward.append(sum(tables.mean_terms(sample_N, setting_NM).values()))
    shares = kept_share(tables, sample_N, kept[0], controllers_ms)
    return Pool(tables, sample_N, controllers_ms, np.stack(kept[1:]), np.array(reward[1:]), reward[0], shares)


def _on_cache(path: str, divisions: int) -> str:
    """Trains on a third of a cache's images, selects weights on a twelfth to a sixth, and divides the others."""
    cache = open_cache(path)
    assert cache.budget_encoder_path is not None, "a cache that knobctl made has an encoder"
    tables = ReplayTables.from_cache(cache, RewardWeights())
    sixth_S = fold_of_samples(tables.cluster_S, 6, 0)
    tables = tables.with_splits(
        {
            name: np.flatnonzero(np.isin(sixth_S, part))
            for name, part in (("train", (0, 1)), ("val", (2,)), ("test", (3, 4, 5)))
        }
    )
    pool = _pool_of(tables, read_budget_encoder(cache.budget_encoder_path, cache.d_model))
    rng = np.random.default_rng(0)
    cluster_N = tables.cluster_S[pool.sample_N]
    images = np.unique(cluster_N)
    shares: dict[float, list[float]] = {level: [] for level in LEVELS}
    factors: dict[float, list[float]] = {level: [] for level in LEVELS}
    sizes = []
    for _ in range(divisions):
        in_half_N = np.isin(cluster_N, rng.permutation(images)[: len(images) // 2])
        half_N, rest_N = np.flatnonzero(in_half_N), np.flatnonzero(~in_half_N)
        row_C, budget_C = drawn_requests(tables, pool.sample_N[half_N], pool.controllers_ms, rng)
        sizes.append(len(row_C))
        for found in calibrated_levels(pool.kept_FNM[:, half_N[row_C], budget_C]):
            if found.budget_factor is not None:
                kept_NM = pool.kept_FNM[FACTORS.index(found.budget_factor)][rest_N]
                factors[found.level].append(found.budget_factor)
                shares[found.level].append(kept_share(tables, pool.sample_N[rest_N], kept_NM, pool.controllers_ms))
    rows = [
        {
            "level": f"{level:.2f}",
            "divisions that found a factor": f"{len(shares[level])} of {divisions}",
            "share kept in the other half: lowest, 5th percentile, median": (
                ", ".join(f"{value:.3f}" for value in np.quantile(shares[level], [0, 0.05, 0.5]))
                if shares[level]
                else "-"
            ),
            "below the level": f"{sum(share < level for share in shares[level])} of {len(shares[level])}",
            "factor: lowest, median": (
                ", ".join(f"{value:.2f}" for value in np.quantile(factors[level], [0, 0.5])) if factors[level] else "-"
            ),
        }
        for level in LEVELS
    ]
    return (
        f"{divisions} divisions of {len(images)} images of {path} into halves: one calibrates, with {min(sizes)} to "
        f"{max(sizes)} images that have a budget which some setting can meet, the other tests. The controllers were "
        f"trained once on {len(tables.indices('train'))} other questions. Without a level they keep "
        f"{pool.plain_share:.3f} of the requests that can be met.\n\n" + markdown(("levels", row) for row in rows)
    )


def _trained(tables: ReplayTables, encoder: BudgetEncoder) -> Controllers:
    config = recipe("tuned", seeds=(0,))
    data = prepare_training(tables, encoder, config)
    trainer = Trainer(data, config)
    while not trainer.done:
        trainer.run_epoch(lambda _log: None)
        if trainer.evaluation_due:
            trainer.evaluate()
    controllers = controllers_of(trainer, 0)
    controllers.expected_latency = fit_expected_latency(data.tables)
    return controllers


def _rows(structure: str, pool: Pool, images: int, draws: int) -> list[dict[str, str]]:
    rng = np.random.default_rng(0)
    true_share_F = [kept_share(pool.tables, pool.sample_N, kept_NM, pool.controllers_ms) for kept_NM in pool.kept_FNM]
    feasible = np.flatnonzero(can_be_met(pool.tables, pool.sample_N, pool.controllers_ms).any(axis=1))
    factors: dict[float, list[float]] = {level: [] for level in LEVELS}
    for _ in range(draws):
        some_N = np.sort(rng.choice(feasible, images, replace=False))
        row_C, budget_C = drawn_requests(pool.tables, pool.sample_N[some_N], pool.controllers_ms, rng)
        for found in calibrated_levels(pool.kept_FNM[:, some_N[row_C], budget_C]):
            if found.budget_factor is not None:
                factors[found.level].append(found.budget_factor)
    rows = []
    for level, found in factors.items():
        places = [FACTORS.index(factor) for factor in found]
        shares = [true_share_F[place] for place in places]
        rows.append(
            {
                "population": structure,
                "level": f"{level:.2f}",
                "calibrations that found a factor": f"{len(found)} of {draws}",
                "with a true share below the level": f"{sum(share < level for share in shares)} of {len(found)}",
                "true share: lowest, median": f"{min(shares):.4f}, {np.median(shares):.4f}" if found else "-",
                "median factor": f"{np.median(found):.2f}" if found else "-",
                "mean reward": f"{np.mean([pool.reward_F[place] for place in places]):.4f}" if found else "-",
                "without a level: share, reward": f"{pool.plain_share:.4f}, {pool.plain_reward:.4f}",
            }
        )
    return rows


if __name__ == "__main__":
    main()
