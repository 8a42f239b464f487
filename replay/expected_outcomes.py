"""Expected outcomes of samples under settings for which the cache has none, and means that account for these holes.

A mean over the samples that have a setting is unbiased if outcomes are missing at random, but too high for a setting
that only easy or fast samples have. Here means are over all samples, with missing values replaced by expected ones:

    mean of setting x = mean over all samples of expected(s, x) + mean over measured samples of (value - expected)

With the second term the mean is unbiased for outcomes missing at random, however poor the expectation; the first term
accounts for samples that lack a setting because of their properties (the difference estimator of survey sampling;
Särndal, Swensson and Wretman, 1992, section 6.3). The expectation is fitted to accuracy and to the logarithm of
latency, and rewards are computed from both. Rewards themselves do not fit an additive model (setting + sample): a
latency of ten times the budget costs 810, so settings that no policy would choose would determine a sample's effect.

Shapes: N samples, X settings. NaN marks a missing value.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ROUNDS = 40
PRIOR_PRECISION = 0.25  # of the prior of a sample's ease, in logits: a standard deviation of 2
SETTING_PRECISION = 0.1  # keeps logits finite for a setting under which all answers are right, or all wrong
LARGEST_STEP = 1.0  # in logits; a full Newton step far from the optimum overshoots


def completed(value_NX: NDArray[np.floating], expected_NX: NDArray[np.floating]) -> NDArray[np.floating]:
    """Returns the values, missing ones replaced by expected ones shifted to the setting's level.

    A setting that no sample has remains NaN.
    """
    known_NX = np.isfinite(value_NX)
    if known_NX.all():
        return value_NX
    off_NX = np.subtract(value_NX, expected_NX, out=np.zeros(value_NX.shape), where=known_NX)
    count_X = known_NX.sum(axis=0)
    off_X = np.where(count_X > 0, off_NX.sum(axis=0) / np.maximum(count_X, 1), np.nan)
    return np.where(known_NX, value_NX, expected_NX + off_X)


def mean_over_samples(
    value_NX: NDArray[np.floating], expected_NX: NDArray[np.floating] | None = None
) -> NDArray[np.float64]:
    """Returns each setting's mean over all samples, [X]; NaN for a setting that no sample has.

    `expected_NX` replaces missing values (see `completed`); by default it is `setting_plus_sample`. Without missing
    values the result is the plain mean.
    """
    if expected_NX is None:
        expected_NX = setting_plus_sample(value_NX)
    return completed(value_NX, expected_NX).mean(axis=0, dtype=np.float64)


def setting_plus_sample(value_NX: NDArray[np.floating]) -> NDArray[np.floating]:
    """Returns the values of the additive model setting + sample, [N, X], fitted to the known values.

    A sample's effect is its mean deviation over its settings, each weighted by the inverse of its variance over
    samples, because a setting with a large spread carries little information about a sample. A sample without values
    has effect 0.
    """
    known_NX = np.isfinite(value_NX)
    if known_NX.all() or not known_NX.any():
        return value_NX
    value_NX = np.where(known_NX, value_NX, 0.0).astype(np.float64)
    count_X = np.maximum(known_NX.sum(axis=0), 1)
    mean_X = value_NX.sum(axis=0) / count_X
    variance_X = np.square((value_NX - mean_X) * known_NX).sum(axis=0) / count_X
    # A setting with a single sample has variance 0, but is not more informative than others: bound its weight.
    floor = np.quantile(variance_X[count_X > 1], 0.1) if (count_X > 1).any() else 1.0
    weight_NX = known_NX / np.maximum(variance_X, max(floor, 1e-12))
    weight_N = np.where(known_NX.any(axis=1), weight_NX.sum(axis=1), 1.0)
    effect_N = np.zeros(len(value_NX))
    for _ in range(ROUNDS):
        mean_X = (value_NX - effect_N[:, None] * known_NX).sum(axis=0) / count_X
        before_N, effect_N = effect_N, ((value_NX - mean_X) * weight_NX).sum(axis=1) / weight_N
        effect_N -= effect_N.mean()
        if np.abs(effect_N - before_N).max() <= 1e-4 * effect_N.std():
            break
    return mean_X + effect_N[:, None]


def expected_latency_ms(latency_ms_NX: NDArray[np.float32], tier_X: NDArray[np.int64]) -> NDArray[np.float32]:
    """Returns expected latencies, [N, X]: the product of effects of setting, sample, and sample within the tier.

    A long prompt or answer makes a sample slower by one factor under all settings, its image by another in each tier.
    """
    if np.isfinite(latency_ms_NX).all():
        return latency_ms_NX
    log_NX = np.log(latency_ms_NX)
    expected_NX = setting_plus_sample(log_NX)
    for tier in np.unique(tier_X):
        within_X = tier_X == tier
        expected_NX[:, within_X] += setting_plus_sample(log_NX[:, within_X] - expected_NX[:, within_X])
    return np.exp(expected_NX).astype(np.float32)


def expected_accuracy(accuracy_NX: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns expected accuracies, [N, X]: logistic(setting + sample).

    This is the Rasch model of test theory with a normal prior on the sample's ease, fitted by Newton steps. The plain
    additive model does not fit, because accuracy lies between 0 and 1: a sample that fails under every setting loses
    nothing under a cheap one.
    """
    known_NX = np.isfinite(accuracy_NX)
    if known_NX.all():
        return accuracy_NX
    right_NX = np.where(known_NX, accuracy_NX, 0.0).astype(np.float64)
    right_X, right_N = right_NX.sum(axis=0), right_NX.sum(axis=1)
    ease_X, ease_N = np.zeros(right_NX.shape[1]), np.zeros(len(right_NX))

    def step(ease: NDArray[np.float64], right: NDArray[np.float64], axis: int, precision: float) -> NDArray[np.float64]:
        chance_NX = logistic(ease_X + ease_N[:, None]) * known_NX
        slope = (chance_NX * (1.0 - chance_NX)).sum(axis=axis) + precision
        return np.clip((right - chance_NX.sum(axis=axis) - precision * ease) / slope, -LARGEST_STEP, LARGEST_STEP)

    for _ in range(ROUNDS):
        ease_X += step(ease_X, right_X, 0, SETTING_PRECISION)
        step_N = step(ease_N, right_N, 1, PRIOR_PRECISION)
        ease_N += step_N
        if np.abs(step_N).max() < 0.01:
            break
    return logistic(ease_X + ease_N[:, None]).astype(np.float32)


def logistic(logit: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1.0 / (1.0 + np.exp(-logit))
