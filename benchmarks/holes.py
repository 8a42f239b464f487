"""Measures how much reward missing outcomes cost the baselines: `python benchmarks/holes.py` (see --help for options).

Outcomes of the training split are removed, baselines are fitted on the rest, and their mean reward is measured on a
complete test split. Three ways to fill the holes are compared: the additive model (reward = setting + sample), the mean
of the setting over the samples that have it, and `knobctl.replay.expected_outcomes`, which knobctl uses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from unittest.mock import patch

import click
import numpy as np
import torch
from numpy.typing import NDArray

from knobctl.data.generated.population import STRUCTURES, GeneratedCache, GeneratedConfig, generate
from knobctl.data.protocols import Policy
from knobctl.replay.evaluation.request_stats import STATS, RequestSet, request_stats
from knobctl.replay.policies import fixed
from knobctl.replay.policies.decide import decide
from knobctl.replay.policies.registry import build_baselines
from knobctl.replay.tables import FilledRewards, ReplayTables
from knobctl.tests.support.replay_inputs import tables_of

Array = NDArray[np.floating]
SHARES = (0.02, 0.05, 0.1, 0.2, 0.4)
BASELINES = ("table", "dataset_table", "best_fixed", "cheapest", "neighbours")


def additive(value_NX: Array) -> Array:
    """Returns the rewards expected by the additive model, fitted by backfitting."""
    known_NX = np.isfinite(value_NX)
    value_NX = np.where(known_NX, value_NX, 0.0).astype(np.float64)
    count_X, count_N = np.maximum(known_NX.sum(axis=0), 1), np.maximum(known_NX.sum(axis=1), 1)
    effect_N = np.zeros(len(value_NX))
    for _ in range(10):
        mean_X = (value_NX - effect_N[:, None] * known_NX).sum(axis=0) / count_X
        effect_N = (value_NX - mean_X * known_NX).sum(axis=1) / count_N
        effect_N -= effect_N.mean()
    return mean_X + effect_N[:, None]


def filling(expected: Callable[[Array], Array]) -> Callable[[FilledRewards, float], tuple[Array, Array]]:
    """Returns a way of filling holes that uses only rewards."""

    def measured_and_expected(rewards: FilledRewards, budget_ms: float) -> tuple[Array, Array]:
        reward_NX = rewards.tables.reward_BX(rewards.sample_N, np.full(len(rewards.sample_N), budget_ms, np.float32))
        return reward_NX, expected(reward_NX)

    return measured_and_expected


def build(name: str, table: ReplayTables, expected: Callable[[Array], Array] | None) -> Policy:
    """Returns a baseline fitted with holes filled by `expected`; None: as in knobctl."""
    table = replace(table)  # a copy without cached means
    if expected is None:
        return build_baselines([name], table)[0]
    with (
        patch.object(FilledRewards, "_recorded_and_expected", filling(expected)),
        patch.object(fixed, "expected_latency_ms", lambda latency_ms_NX, _tier_X: expected(latency_ms_NX)),
    ):
        return build_baselines([name], table)[0]


WAYS: dict[str, Callable[[Array], Array] | None] = {"additive": additive, "plain mean": np.zeros_like, "knobctl": None}


def tables_with_holes(made: GeneratedCache, hole_SX: NDArray[np.bool_]) -> ReplayTables:
    hole_SX = hole_SX & (made.split_S == "train")[:, None]
    return tables_of(
        made,
        datasets=tuple(made.dataset_S.tolist()),
        accuracy_SX=np.where(hole_SX, np.float32("nan"), made.accuracy_SX),
        latency_ms_SX=np.where(hole_SX, np.float32("nan"), made.latency_ms_SX),
        token_STPMD=None,
        token_present_STPM=None,
    )


def test_reward(policy: Policy, table: ReplayTables) -> float:
    budget_M = tuple(range(len(table.budgets_ms_M)))
    problem = RequestSet.of(table, table.measured("test"), budget_M)
    stats_NMF = request_stats(problem, decide(policy, table, problem.sample_N, budget_M))
    return float(stats_NMF[:, :, STATS.index("reward")].mean())


def kinds_of_holes(made: GeneratedCache) -> dict[str, tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """Returns {name: (samples, settings)}: 95 % of the outcomes of these samples and settings are missing."""
    need_S, latency_SX = made.need_SL.max(axis=1), made.latency_ms_SX
    hard_S, slow_S = need_S > np.median(need_S), latency_SX.mean(axis=1) > np.median(latency_SX.mean(axis=1))
    cost_X = latency_SX.mean(axis=0)
    cheap_X, dear_X = cost_X < np.quantile(cost_X, 0.3), cost_X > np.quantile(cost_X, 0.6)
    third_X = np.random.default_rng(0).random(len(cost_X)) < 1 / 3
    tier_X = np.array([setting.tier for setting in made.config.space.settings])
    k_X = np.array([setting.top_k for setting in made.config.space.settings])
    dataset_S = made.dataset_S == "generated_hard"
    return {
        "only easy samples have the cheap settings": (hard_S, cheap_X),
        "only hard samples have the cheap settings": (~hard_S, cheap_X),
        "only easy samples have the expensive settings": (hard_S, dear_X),
        "only hard samples have the expensive settings": (~hard_S, dear_X),
        "only easy samples have a random third": (hard_S, third_X),
        "only fast samples have the expensive settings": (slow_S, dear_X),
        "only fast samples have a random third": (slow_S, third_X),
        "only the easy dataset has the low tier": (dataset_S, tier_X == "low"),
        "only the hard dataset has the low tier": (~dataset_S, tier_X == "low"),
        "only the easy dataset has the native top-k": (dataset_S, k_X == k_X.max()),
    }


@click.command()
@click.option("--train", default=2000, show_default=True, help="Training samples.")
@click.option("--test", default=2000, show_default=True)
@click.option("--draws", default=20, show_default=True, help="Random draws for each share of holes.")
@click.option("--structure", "structures", multiple=True, type=click.Choice(list(STRUCTURES)), default=["linear"])
@click.option("--baseline", "baselines", multiple=True, type=click.Choice(BASELINES), default=["table"])
def main(train: int, test: int, draws: int, structures: tuple[str, ...], baselines: tuple[str, ...]) -> None:
    """Print test rewards of the complete cache and of each way of filling; `difference`: knobctl minus plain mean."""
    torch.set_num_threads(1)
    header = ("structure", "baseline", "missing", "complete", *WAYS, "difference")
    click.echo(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for structure in structures:
        made = generate(GeneratedConfig(train, 200, test, 8, 4, structure, seed=1))
        shape = made.accuracy_SX.shape
        cases = {
            f"{share:.0%} at random": [np.random.default_rng(draw).random(shape) < share for draw in range(draws)]
            for share in SHARES
        }
        for missing, (sample_S, setting_X) in kinds_of_holes(made).items():
            cases[missing] = [sample_S[:, None] & setting_X & (np.random.default_rng(0).random(shape) < 0.95)]
        complete = tables_with_holes(made, np.zeros(shape, dtype=bool))
        for name in baselines:
            best = test_reward(build(name, complete, None), complete)
            for missing, holes in cases.items():
                cells = " | ".join(f"{reward:.4f}" for reward in (best, *rewards_with(name, made, holes)))
                click.echo(f"| {structure} | {name} | {missing} | {cells} |")


def rewards_with(name: str, made: GeneratedCache, holes: Sequence[NDArray[np.bool_]]) -> list[float]:
    """Returns a baseline's test reward, averaged over draws, for each way of filling, and the last two's difference."""
    tables = [tables_with_holes(made, hole_SX) for hole_SX in holes]
    reward = [
        float(np.mean([test_reward(build(name, table, how), table) for table in tables])) for how in WAYS.values()
    ]
    return [*reward, reward[-1] - reward[-2]]


if __name__ == "__main__":
    main()
