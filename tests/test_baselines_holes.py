"""Baselines on caches with missing outcomes: no loss if missing at random, no bias by which samples have one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from knobctl.data.cache.reader import open_cache
from knobctl.data.generated.population import GeneratedCache
from knobctl.replay.evaluation.build_report import table_and_oracle
from knobctl.replay.evaluation.validate import validate_controllers
from knobctl.replay.expected_outcomes import completed, expected_accuracy, expected_latency_ms, mean_over_samples
from knobctl.replay.policies.registry import build_baselines
from knobctl.replay.recipes import recipe
from knobctl.replay.tables import FilledRewards, ReplayTables
from knobctl.replay.training.train import train_controllers
from knobctl.tests.support.caches import generated_cache, write_array_cache
from knobctl.tests.support.replay_inputs import small_generated, tables_of

NAN = float("nan")


@pytest.fixture(scope="module")
def made() -> GeneratedCache:
    return small_generated(train=1000, val=4, test=1000, d_model=8, n_budgets=4, seed=3)


def table_with(made: GeneratedCache, hole_SX: np.ndarray) -> ReplayTables:
    """Returns the generated outcomes, with these holes in the training split."""
    hole_SX = hole_SX & (made.split_S == "train")[:, None]
    return tables_of(
        made,
        datasets=tuple(made.dataset_S.tolist()),
        accuracy_SX=np.where(hole_SX, np.float32(NAN), made.accuracy_SX),
        latency_ms_SX=np.where(hole_SX, np.float32(NAN), made.latency_ms_SX),
    )


def reward_of_plain_means(table: ReplayTables) -> float:
    """Returns the test reward of the settings with the highest plain mean over the samples that have them."""
    train, test = table.train_samples(), table.measured("test")
    rewards = []
    for budget_ms in table.budgets_ms_M:
        best = np.nanmean(table.reward_BX(train, np.full(len(train), budget_ms)), axis=0, dtype=np.float64).argmax()
        rewards.append(table.reward_BX(test, np.full(len(test), budget_ms))[:, best].mean(dtype=np.float64))
    return float(np.mean(rewards))


@pytest.mark.parametrize("share", [0.05, 0.4])
def test_outcomes_missing_at_random_do_not_lower_the_reward_of_the_table(made: GeneratedCache, share: float):
    shape = made.accuracy_SX.shape
    tables = [table_with(made, np.random.default_rng(draw).random(shape) < share) for draw in range(3)]
    table = np.mean([table_and_oracle(one, "test")[0] for one in tables])
    assert table >= np.mean([reward_of_plain_means(one) for one in tables]) - 0.005


def kinds_of_holes(made: GeneratedCache) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns {name: (samples, settings)}; hard samples differ in their latent need, which is not in the cache."""
    need_S, latency_S = made.need_SL.max(axis=1), made.latency_ms_SX.mean(axis=1)
    cost_X = made.latency_ms_SX.mean(axis=0)
    who = {"hard": need_S > np.median(need_S), "slow": latency_S > np.median(latency_S)}
    who |= {"easy": ~who["hard"], "hard dataset": made.dataset_S == "generated_hard"}
    who["easy dataset"] = ~who["hard dataset"]
    what = {
        "cheap": cost_X < np.quantile(cost_X, 0.3),
        "dear": cost_X > np.quantile(cost_X, 0.6),
        "some": cost_X % 3 < 1,
    }
    what["low"] = np.array([setting.tier == "low" for setting in made.config.space.settings])
    pairs = [("hard", "cheap"), ("hard", "dear"), ("hard", "some"), ("easy", "cheap"), ("easy", "dear")]
    pairs += [("slow", "dear"), ("slow", "some"), ("hard dataset", "low"), ("easy dataset", "low")]
    return {f"{one} lack {other}": (who[one], what[other]) for one, other in pairs}


def test_mean_rewards_do_not_depend_on_which_samples_have_a_setting(made: GeneratedCache):
    complete = table_with(made, np.zeros(made.accuracy_SX.shape, dtype=bool))
    rows, reward_MX = complete.train_samples(), complete.train_rewards.mean_MX
    for name, (sample_S, setting_X) in kinds_of_holes(made).items():
        most_SX = np.random.default_rng(0).random(made.accuracy_SX.shape) < 0.95
        holed = table_with(made, sample_S[:, None] & setting_X & most_SX)
        for budget, budget_ms in enumerate(complete.budgets_ms_M):
            competing_X = setting_X & (reward_MX[budget] > reward_MX[budget].max() - 0.5)
            if competing_X.any():
                plain_X = np.nanmean(holed.reward_BX(rows, np.full(len(rows), budget_ms)), axis=0)
                off_X = holed.train_rewards.mean_MX[budget] - reward_MX[budget]
                plain_off_X = plain_X - reward_MX[budget]
                off, plain_off = (np.abs(value_X[competing_X]).mean() for value_X in (off_X, plain_off_X))
                assert off < min(0.05, 0.7 * plain_off), (name, budget, off, plain_off)


def test_unmeasured_latencies_of_slow_samples_do_not_make_a_setting_cheap():
    factor_N, setting_X = np.array([1.0, 2.0, 10.0, 30.0]), np.array([10.0, 12.0, 40.0])
    true_NX = np.outer(factor_N, setting_X).astype(np.float32)
    measured_NX = true_NX.copy()
    measured_NX[2:, 1] = NAN  # only fast samples have the second setting
    expected_NX = expected_latency_ms(measured_NX, np.array([0, 0, 1]))
    np.testing.assert_allclose(expected_NX, true_NX, rtol=0.01)
    assert np.nanmean(measured_NX, axis=0).argmin() == 1
    np.testing.assert_allclose(mean_over_samples(measured_NX, expected_NX), true_NX.mean(axis=0), rtol=0.01)


def test_the_cheapest_setting_is_cheapest_over_all_samples(tmp_path: Path):
    latency = np.outer([1.0, 2.0, 10.0, 30.0, 1.0], [10.0, 12.0, 40.0, 50.0])
    latency[2:4, 1] = NAN
    splits = ["train"] * 4 + ["test"]
    table = ReplayTables.from_cache(open_cache(write_array_cache(tmp_path / "c", latency * 0, latency, splits=splits)))
    (cheapest,) = build_baselines(["cheapest"], table)
    assert cheapest.best(table.requests(table.measured("test"), 0)).tolist() == [0]


def test_a_sample_that_is_always_wrong_is_expected_to_be_wrong_under_a_cheap_setting():
    accuracy_NX = np.array([[1, 1, 0]] * 20 + [[1, 0, 0]] * 20 + [[0, 0, NAN]] * 20 + [[1, 1, NAN]] * 20, np.float32)
    expected_NX = expected_accuracy(accuracy_NX)
    assert expected_NX[40:60, 2].max() < 0.05
    assert 0.0 <= expected_NX.min() <= expected_NX.max() <= 1.0
    assert (expected_NX[60:, 2] > expected_NX[40:60, 2]).all()


def test_measured_values_are_kept_and_a_setting_without_samples_stays_missing():
    value_NX = np.array([[1.0, NAN, NAN], [3.0, 5.0, NAN]])
    filled_NX = completed(value_NX, np.array([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0]]))
    # 3: the expected 2 plus the second sample's deviation of 1
    np.testing.assert_array_equal(filled_NX, [[1.0, 3.0, NAN], [3.0, 5.0, NAN]])
    np.testing.assert_array_equal(completed(value_NX[:, :1], value_NX[:, :1]), value_NX[:, :1])


def test_filled_rewards_are_close_to_each_sample_s_true_ones(made: GeneratedCache):
    sample_S, setting_X = kinds_of_holes(made)["slow lack some"]
    holed = table_with(made, sample_S[:, None] & setting_X)
    rows = holed.train_samples()
    budget_ms = float(holed.budgets_ms_M[1])
    filled_NX = FilledRewards(holed, rows).at_NX(budget_ms)
    truth_NX = table_with(made, np.zeros(made.accuracy_SX.shape, dtype=bool)).reward_BX(
        rows, np.full(len(rows), budget_ms)
    )
    hole_NX = ~holed.available_SX[rows]
    fits_NX = hole_NX & (truth_NX > -1.0)
    by_setting_NX = np.broadcast_to(filled_NX.mean(axis=0), filled_NX.shape)
    off, off_by_setting = (np.abs(value_NX - truth_NX)[fits_NX].mean() for value_NX in (filled_NX, by_setting_NX))
    assert off < 0.5 * off_by_setting
    np.testing.assert_array_equal(filled_NX[~hole_NX], truth_NX[~hole_NX])


@pytest.mark.parametrize("holes", [0.0, 0.3])
def test_train_and_validate_report_the_same_gap(tmp_path: Path, holes: float):
    cache = generated_cache(tmp_path / "cache", holes=holes)
    config = recipe("tuned", epochs=2, min_steps=0, basis_rows=1)
    trained = train_controllers(cache.path, tmp_path / "out", config)
    report = validate_controllers(
        tmp_path / "out", cache.path, split="val", baselines=["table", "oracle"], resamples=50
    )
    reward = {name: policy.overall.metrics["reward"].value for name, policy in report.policies.items()}
    assert trained.val_table_reward == pytest.approx(reward["table"], abs=1e-6)
    assert trained.val_oracle_reward == pytest.approx(reward["oracle"], abs=1e-6)
    assert trained.seeds[0].val_reward == pytest.approx(reward["controllers"], abs=1e-6)
    gap = report.policies["controllers"].overall.metrics["gap_closed"].value
    assert trained.seeds[0].val_gap_closed == pytest.approx(gap, abs=1e-5)
