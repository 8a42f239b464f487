"""Estimates each setting's latency before the model runs, from the training split and the request's token counts.

For every setting, latency is a linear function of what is known at decision time: the number of question tokens, the
number of vision tokens for this image and tier, the dataset, and the leading principal components of the language
feature (which carry information about the answer's length). The request's own recorded outcome is never read.

The estimate is then multiplied by a factor per tier, chosen such that 95 % of held-out latencies lie below the result:
split conformal prediction (Vovk et al., 2005; Lei et al., 2018) on the ratio of latency to estimate.

Shapes: N samples, X settings, T tiers, F inputs, C principal components, D = d_model.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..latency_fit import ridge_solution
from ..tables import ReplayTables

MISS_RATE = 0.05  # share of requests whose latency may exceed the upper estimate
LANGUAGE_COMPONENTS = 16
MIN_SAMPLES_PER_INPUT = 10  # inputs are left out until the fit has at least this many samples for each


class LatencyEstimate:
    """A latency model fitted on the training split. The guard compares `upper_ms_NX` with the budget."""

    def __init__(self, tables: ReplayTables, *, miss_rate: float = MISS_RATE) -> None:
        self.tables = tables
        self.counts = tables.counts
        self.miss_rate = miss_rate
        fit_N, held_out_N = tables.fit_and_tune_samples
        self.tier_X = tables.space.value_index_KX[0]
        self.inputs_used: list[str] = []
        self._prepare(fit_N)
        design_NTF = self._design(fit_N)
        self.coefficient_XF = np.stack(
            [self._fit(design_NTF[:, tier], fit_N, setting) for setting, tier in enumerate(self.tier_X)]
        )
        self.factor_T = self._factors(held_out_N if len(held_out_N) else fit_N)

    def _prepare(self, fit_N: NDArray[np.int64]) -> None:
        """Computes means and scales on the training split, and selects as many inputs as its size supports."""
        tables, allowed = self.tables, max(0, len(fit_N) // MIN_SAMPLES_PER_INPUT - 1)
        self.text_mean, self.text_std = _scale(self.counts.text_tokens_S[fit_N])
        scales = [_scale(column) for column in self.counts.vision_tokens_ST[fit_N].T]
        self.vision_mean_T = np.array([mean for mean, _ in scales])
        self.vision_std_T = np.array([std for _, std in scales])
        self.datasets: list[str] = []
        self.component_CD = np.zeros((0, tables.language_feature_SD.shape[1]))
        self.feature_mean_D = np.zeros(tables.language_feature_SD.shape[1])
        if allowed >= 1 and self.vision_std_T.any():
            self.inputs_used += ["vision_tokens"]
        else:
            self.vision_std_T[:] = 0.0
        if allowed >= 2 and self.text_std:
            self.inputs_used += ["text_tokens"]
        else:
            self.text_std = 0.0
        names = sorted({tables.datasets[index] for index in fit_N})[1:]  # the intercept stands for the first one
        if names and allowed >= 2 + len(names):
            self.datasets = names
            self.inputs_used += ["dataset"]
        spare = min(LANGUAGE_COMPONENTS, allowed - 2 - len(self.datasets), tables.language_feature_SD.shape[1])
        if spare >= 1:
            feature_ND = tables.language_feature_SD[fit_N].astype(np.float64)
            self.feature_mean_D = feature_ND.mean(axis=0)
            centred_ND = feature_ND - self.feature_mean_D
            value_D, vector_DD = np.linalg.eigh(centred_ND.T @ centred_ND / len(fit_N))
            kept = np.argsort(-value_D)[:spare]
            kept = kept[value_D[kept] > 1e-12]
            self.component_CD = vector_DD[:, kept].T / np.sqrt(value_D[kept])[:, None]
            self.inputs_used += ["language_feature"] if len(kept) else []

    def _design(self, sample_N: NDArray[np.int64]) -> NDArray[np.float64]:
        """Returns the inputs of each sample in each tier, [N, T, F]; an unknown count is replaced by the mean."""
        tiers = len(self.vision_mean_T)
        vision_NT = _standardised(self.counts.vision_tokens_ST[sample_N], self.vision_mean_T, self.vision_std_T)
        text_N = _standardised(self.counts.text_tokens_S[sample_N], self.text_mean, self.text_std)
        dataset_N = [self.tables.datasets[index] for index in sample_N]
        shared = [np.ones(len(sample_N)), text_N]
        shared += [np.array([name == dataset for name in dataset_N], dtype=np.float64) for dataset in self.datasets]
        feature_ND = self.tables.language_feature_SD[sample_N] - self.feature_mean_D
        shared_NF = np.concatenate([np.stack(shared, axis=1), feature_ND @ self.component_CD.T], axis=1)
        return np.concatenate([np.repeat(shared_NF[:, None], tiers, axis=1), vision_NT[:, :, None]], axis=2)

    def _fit(self, design_NF: NDArray[np.float64], fit_N: NDArray[np.int64], setting: int) -> NDArray[np.float64]:
        """Fits by ridge regression over the samples that have the setting; NaN if none has it."""
        known_N = self.tables.available_SX[fit_N, setting]
        if not known_N.any():
            return np.full(design_NF.shape[1], np.nan)
        design = design_NF[known_N]
        latency_ms = self.tables.latency_ms_SX[fit_N[known_N], setting].astype(np.float64)
        return ridge_solution(design, latency_ms)

    def _factors(self, held_out_N: NDArray[np.int64]) -> NDArray[np.float64]:
        """Returns the factor for each tier's estimates, [T]."""
        estimate_NX = self.estimate_ms_NX(held_out_N)
        latency_NX = np.where(self.tables.available_SX[held_out_N], self.tables.latency_ms_SX[held_out_N], np.nan)
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio_NX = latency_NX / estimate_NX
        factors = []
        for tier in range(len(self.vision_mean_T)):
            ratio = ratio_NX[:, self.tier_X == tier]
            ratio = ratio[np.isfinite(ratio)]
            samples = len(held_out_N)  # the sample is the unit: errors of one sample's settings are correlated
            level = min(1.0, (1.0 - self.miss_rate) * (samples + 1) / max(samples, 1))
            factors.append(float(np.quantile(ratio, level)) if len(ratio) else 1.0)
        return np.array(factors)

    def estimate_ms_NX(self, sample_N: NDArray[np.int64]) -> NDArray[np.float64]:
        """Returns the expected latency of every setting; NaN for a setting without training samples."""
        design_NTF = self._design(sample_N)
        estimate_NX = np.empty((len(sample_N), len(self.tier_X)))
        for tier in range(design_NTF.shape[1]):
            columns = self.tier_X == tier
            estimate_NX[:, columns] = design_NTF[:, tier] @ self.coefficient_XF[columns].T
        return np.maximum(estimate_NX, 1e-3)

    def upper_ms_NX(self, sample_N: NDArray[np.int64]) -> NDArray[np.float64]:
        """Returns upper estimates, which 95 % of latencies should not exceed; infinite without training samples."""
        return np.nan_to_num(self.estimate_ms_NX(sample_N) * self.factor_T[self.tier_X], nan=np.inf)


def _scale(value: NDArray[np.floating]) -> tuple[float, float]:
    known = value[np.isfinite(value)].astype(np.float64)
    return (float(known.mean()), float(known.std())) if len(known) else (0.0, 0.0)


def _standardised(
    value: NDArray[np.floating], mean: float | NDArray[np.floating], std: float | NDArray[np.floating]
) -> NDArray[np.float64]:
    scaled = (value.astype(np.float64) - mean) / np.where(np.asarray(std) > 0, std, np.inf)
    return np.nan_to_num(scaled, nan=0.0)
