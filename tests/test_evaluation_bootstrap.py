"""Properties of the clustered, paired bootstrap."""

from __future__ import annotations

import numpy as np
import pytest

from knobctl.replay.evaluation.bootstrap import ClusterBootstrap, Estimate, holm_adjusted


def interval(value_N: np.ndarray, cluster_N: np.ndarray, seed: int = 0, resamples: int = 2000) -> Estimate:
    bootstrap = ClusterBootstrap.draw(cluster_N, resamples=resamples, seed=seed)
    return bootstrap.estimate(value_N.mean(), bootstrap.resampled_means(value_N[:, None])[:, 0])


def test_resampled_means_equal_those_of_drawing_whole_clusters():
    value_NF = np.array([[1.0, 5.0], [2.0, 6.0], [9.0, 7.0]])
    bootstrap = ClusterBootstrap.draw(np.array([7, 7, 3]), resamples=50, seed=0)  # cluster 3 becomes 0, 7 becomes 1
    for draws, mean_F in zip(bootstrap.weight_RC, bootstrap.resampled_means(value_NF), strict=True):
        rows = [2] * int(draws[0]) + [0, 1] * int(draws[1])
        np.testing.assert_allclose(mean_F, value_NF[rows].mean(axis=0))


def test_the_interval_of_many_independent_samples_agrees_with_normal_theory():
    value_N = np.random.default_rng(0).standard_normal(1000)
    found = interval(value_N, np.arange(1000), resamples=4000)
    half = 1.96 * value_N.std() / np.sqrt(1000)
    assert found.low == pytest.approx(value_N.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(value_N.mean() + half, abs=0.1 * half)


def test_samples_of_one_image_count_as_one():
    once = np.random.default_rng(0).standard_normal(100)
    alone = interval(once, np.arange(100))
    copied = interval(np.repeat(once, 9), np.repeat(np.arange(100), 9))
    taken_as_independent = interval(np.repeat(once, 9), np.arange(900))
    assert copied.low == pytest.approx(alone.low)
    assert copied.high == pytest.approx(alone.high)
    assert taken_as_independent.high - taken_as_independent.low < 0.5 * (alone.high - alone.low)


def test_equal_seeds_give_equal_intervals_and_other_seeds_others():
    value_N = np.random.default_rng(0).standard_normal(50)
    assert interval(value_N, np.arange(50), seed=3) == interval(value_N, np.arange(50), seed=3)
    assert interval(value_N, np.arange(50), seed=3) != interval(value_N, np.arange(50), seed=4)


def test_paired_differences_cancel_common_variation():
    rng = np.random.default_rng(0)
    shared_N = 10.0 * rng.standard_normal(200)
    value_NF = np.stack([shared_N + 0.1 + 0.1 * rng.standard_normal(200), shared_N], axis=1)
    bootstrap = ClusterBootstrap.draw(np.arange(200))
    mean_RF = bootstrap.resampled_means(value_NF)
    gap = bootstrap.estimate(value_NF[:, 0].mean() - value_NF[:, 1].mean(), mean_RF[:, 0] - mean_RF[:, 1])
    assert gap.low > 0
    assert gap.high - gap.low < 0.1


def test_a_single_image_gives_no_interval_and_nan_no_figure():
    bootstrap = ClusterBootstrap.draw(np.zeros(5, dtype=int), resamples=10)
    assert bootstrap.estimate(0.5, np.full(10, 0.5)) == Estimate(0.5, None, None)
    assert bootstrap.estimate(float("nan"), np.full(10, 0.5)) == Estimate(None, None, None)
    assert bootstrap.p_value(np.full(10, 0.5)) is None


def test_a_p_value_is_the_level_at_which_the_interval_excludes_zero():
    bootstrap = ClusterBootstrap.draw(np.arange(30), resamples=999)
    resampled_R = np.linspace(-0.02, 0.98, 999)  # 20 of them are at or below 0
    assert bootstrap.p_value(resampled_R) == pytest.approx(2 * 21 / 1000)
    assert bootstrap.p_value(-resampled_R) == pytest.approx(2 * 21 / 1000)
    assert bootstrap.p_value(resampled_R + 1) == pytest.approx(2 / 1000)
    assert bootstrap.p_value(np.zeros(999)) == 1.0  # equal policies
    half = np.quantile(resampled_R, [0.021, 0.979])
    assert half[0] == pytest.approx(0, abs=2e-3)


def test_holm_adjusts_as_in_a_worked_example():
    # Holm (1979): 4 x 0.01, then 3 x 0.013, which must not be below it, 2 x 0.03, 1 x 0.04 raised to 0.06.
    assert holm_adjusted([0.03, 0.01, 0.04, 0.013]) == pytest.approx([0.06, 0.04, 0.06, 0.04])
    assert holm_adjusted([0.7, None, 0.6]) == [1.0, None, 1.0]
    assert holm_adjusted([]) == []


def test_the_quantile_interval_covers_the_true_quantile_at_about_its_confidence():
    rng = np.random.default_rng(0)
    held = 0
    for trial in range(200):
        value_N = rng.exponential(size=300)
        bootstrap = ClusterBootstrap.draw(np.arange(300), resamples=200, seed=trial)
        quantile = np.quantile(value_N, 0.95)
        share_R = bootstrap.resampled_means((value_N <= quantile)[:, None])[:, 0]
        found = bootstrap.quantile_estimate(value_N, 0.95, share_R)
        held += found.low <= -np.log(0.05) <= found.high
    assert 0.90 <= held / 200 <= 0.99
