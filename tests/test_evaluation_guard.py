"""The guard: its inputs, the choices it replaces, and the miss rate it guarantees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from knobctl.data.cache.reader import open_cache
from knobctl.replay.evaluation.request_stats import STATS, RequestSet, request_stats
from knobctl.replay.policies.decide import decide
from knobctl.replay.policies.guard import GuardedPolicy
from knobctl.replay.policies.latency_estimate import LatencyEstimate
from knobctl.replay.policies.registry import build_baselines
from knobctl.replay.tables import ReplayTables
from knobctl.tests.support.caches import write_array_cache

COUNT = 300


@pytest.fixture
def table(tmp_path: Path) -> ReplayTables:
    """Latency: 10 ms + 0.1 ms per vision token + 1 ms per text token, doubled with 16 blocks, with 3 % noise."""
    rng = np.random.default_rng(0)
    vision_ST = np.stack([rng.integers(50, 150, COUNT), rng.integers(400, 900, COUNT)], axis=1)
    text_S = rng.integers(5, 40, COUNT)
    vision_SX = vision_ST[:, [0, 0, 1, 1]]
    expected_SX = (10 + 0.1 * vision_SX + text_S[:, None]) * np.array([1, 2, 1, 2])
    path = write_array_cache(
        tmp_path / "c",
        rng.integers(0, 2, (COUNT, 4)),
        expected_SX * np.exp(0.03 * rng.standard_normal((COUNT, 4))),
        budgets_ms=(40.0, 80.0, 120.0, 160.0),
        splits=["train"] * 150 + ["val"] * 50 + ["test"] * 100,
        vision_tokens_SX=vision_SX,
        text_tokens_S=text_S,
    )
    return ReplayTables.from_cache(open_cache(path))


def missed(table: ReplayTables, policy: object) -> float:
    rows = table.measured("test")
    problem = RequestSet.of(table, rows, (0, 1, 2, 3))
    stats = request_stats(problem, decide(policy, table, rows, (0, 1, 2, 3))).mean(axis=(0, 1))
    return float(stats[STATS.index("violation_of_feasible")] / stats[STATS.index("feasible")])


def test_the_estimate_recovers_a_linear_latency_law(table: ReplayTables):
    estimate = LatencyEstimate(table)
    rows = table.measured("test")
    text_N = table.counts.text_tokens_S[rows].astype(float)
    expected_NX = (10 + 0.1 * table.counts.vision_tokens_ST[rows][:, [0, 0, 1, 1]] + text_N[:, None]) * np.array(
        [1, 2, 1, 2]
    )
    np.testing.assert_allclose(estimate.estimate_ms_NX(rows), expected_NX, rtol=0.04)
    assert estimate.inputs_used == ["vision_tokens", "text_tokens"]
    assert ((estimate.factor_T > 1.03) & (estimate.factor_T < 1.10)).all()
    under = table.latency_ms_SX[rows] <= estimate.upper_ms_NX(rows)
    assert 0.90 <= under.mean() <= 0.99


def test_the_estimate_never_reads_the_request_s_own_outcome(table: ReplayTables):
    rows = table.measured("test")
    before = LatencyEstimate(table).upper_ms_NX(rows)
    table.latency_ms_SX[rows] *= 7.0
    table.accuracy_SX[rows] = 0.0
    np.testing.assert_array_equal(LatencyEstimate(table).upper_ms_NX(rows), before)


@pytest.mark.parametrize("name", ["full", "random", "table"])
def test_fewer_than_five_percent_of_feasible_budgets_are_missed(table: ReplayTables, name: str):
    lookup, policy = build_baselines(["table"], table)[0], build_baselines([name], table)[0]
    guarded = GuardedPolicy(policy, LatencyEstimate(table), lookup)
    plain, kept = missed(table, policy), missed(table, guarded)
    assert kept < 0.05
    assert kept <= plain


def test_a_choice_expected_to_fit_is_kept_and_any_other_is_replaced(table: ReplayTables):
    lookup, full = build_baselines(["full", "table"], table)[::-1]
    estimate = LatencyEstimate(table)
    guarded = GuardedPolicy(full, estimate, lookup)
    rows = table.measured("test")
    chosen_NM = decide(guarded, table, rows, (1, 3))
    upper_NX = estimate.upper_ms_NX(rows)
    for column, budget_ms in enumerate((80.0, 160.0)):
        fits_NX = upper_NX <= budget_ms
        stands_N = chosen_NM[:, column] == 3
        assert (stands_N == fits_NX[:, 3]).all()
        assert fits_NX[np.arange(len(rows)), chosen_NM[:, column]][fits_NX.any(axis=1)].all()
    # Stage1's tier is kept where some depth is expected to fit with it; then Stage2's choice is replaced.
    some_high_N = (upper_NX[:, 2:] <= 80.0).any(axis=1)
    assert ((table.space.value_index_KX[0, chosen_NM[:, 0]] == 1) == some_high_N).all()
    assert guarded.to_dict()["requests"] == 200
    assert guarded.to_dict()["stage1"] > 0


def test_if_nothing_is_expected_to_fit_the_fastest_setting_is_chosen(table: ReplayTables):
    lookup, full = build_baselines(["full", "table"], table)[::-1]
    estimate = LatencyEstimate(table)
    rows = table.measured("test")
    upper_NX = estimate.upper_ms_NX(rows)
    nothing_N = (upper_NX > 40.0).all(axis=1)
    assert nothing_N.any()
    chosen_N = decide(GuardedPolicy(full, estimate, lookup), table, rows, (0,))[:, 0]
    assert (chosen_N[nothing_N] == upper_NX.argmin(axis=1)[nothing_N]).all()


def test_the_guard_works_without_token_counts(tmp_path: Path):
    rng = np.random.default_rng(0)
    latency = np.array([20.0, 40.0, 60.0, 130.0]) * np.exp(0.05 * rng.standard_normal((60, 4)))
    splits = ["train"] * 30 + ["test"] * 30
    cache = open_cache(write_array_cache(tmp_path / "c", rng.integers(0, 2, (60, 4)), latency, splits=splits))
    table = ReplayTables.from_cache(cache)
    estimate = LatencyEstimate(table)
    assert estimate.inputs_used == []
    (full,), (lookup,) = build_baselines(["full"], table), build_baselines(["table"], table)
    chosen_NM = decide(GuardedPolicy(full, estimate, lookup), table, table.measured("test"), (0,))
    assert (chosen_NM == 2).all()  # 60 ms is the slowest setting of the high tier under 100 ms
