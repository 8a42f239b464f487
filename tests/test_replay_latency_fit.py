"""The expected latency of each setting: what it is fitted to, its errors on held-out samples, and missing ones."""

from dataclasses import replace

import numpy as np
import pytest

from knobctl.controllers.expected_latency import TypicalRequest
from knobctl.replay.latency_fit import expected_latency_ms, fit_expected_latency
from knobctl.replay.token_counts import TokenCounts
from knobctl.tests.support.replay_inputs import small_generated, tables_of

TIER_FACTOR = np.array([1.0, 2.0, 4.0])


@pytest.fixture
def tables():
    """10 ms, 5 ms more for dataset b, 0.1 ms per visual and 0.5 ms per text token, times 1 + index / 100; 2 % noise."""
    made = tables_of(small_generated())
    rng, samples = np.random.default_rng(0), len(made.sample_ids)
    vision_ST = rng.integers(50, 150, (samples, 1)) * TIER_FACTOR
    text_S = rng.integers(5, 40, samples)
    names = tuple(rng.choice(["a", "b"], samples).tolist())
    base_S = np.array([10.0 + 5.0 * (name == "b") for name in names]) + 0.5 * text_S
    scale_X = 1 + np.arange(len(made.space.settings)) / 100
    law_SX = (base_S[:, None] + 0.1 * vision_ST[:, made.space.value_index_KX[0]]) * scale_X
    return replace(
        made,
        datasets=names,
        latency_ms_SX=(law_SX * np.exp(0.02 * rng.standard_normal(law_SX.shape))).astype(np.float32),
        recorded_counts=TokenCounts(
            text_S.astype(np.float32),
            vision_ST.astype(np.float32),
            np.array([3.0 if name == "a" else 7.0 for name in names], np.float32),
        ),
    )


def test_a_law_linear_in_tokens_is_recovered_on_held_out_samples(tables):
    made = fit_expected_latency(tables)
    assert (made.datasets, made.inputs) == (("a", "b"), ("vision_tokens", "text_tokens"))
    assert made.held_out.samples == len(tables.indices("val"))
    assert made.held_out.outcomes == made.held_out.samples * len(tables.space.settings)
    assert 0.005 < made.held_out.median < 0.02  # the noise's median is 0.0135
    assert made.held_out.p95 < 0.06
    offset_G = made.offset_ms_GX[:, 0].numpy()
    assert offset_G[1] - offset_G[0] == pytest.approx(5.0, abs=1.0)
    assert float(made.text_ms_X[0]) == pytest.approx(0.5, abs=0.05)


def test_a_typical_request_has_the_mean_tokens_of_its_dataset(tables):
    made = fit_expected_latency(tables)
    train_N = tables.indices("train")
    for dataset, output_tokens in (("a", 3.0), ("b", 7.0)):
        own_N = [index for index in train_N if tables.datasets[index] == dataset]
        vision_tokens = pytest.approx(tables.counts.vision_tokens_ST[own_N, -1].mean())
        assert made.typical[dataset] == TypicalRequest(vision_tokens, output_tokens)
    unknown_S = np.full(len(tables.sample_ids), np.nan, np.float32)
    without = replace(tables, recorded_counts=replace(tables.counts, output_tokens_S=unknown_S))
    assert fit_expected_latency(without).typical == {}


def test_the_fit_reads_the_training_split_alone(tables):
    before = expected_latency_ms(fit_expected_latency(tables), tables, tables.indices("test"))
    changed = tables.latency_ms_SX.copy()
    for split in ("val", "test"):
        changed[tables.indices(split)] *= 3
    after = fit_expected_latency(replace(tables, latency_ms_SX=changed))
    np.testing.assert_array_equal(expected_latency_ms(after, tables, tables.indices("test")), before)
    assert after.held_out.median == pytest.approx(2 / 3, abs=0.02)


def test_a_setting_without_training_samples_has_no_expected_latency(tables):
    latency_SX = tables.latency_ms_SX.copy()
    latency_SX[tables.indices("train"), 7] = np.nan
    made = fit_expected_latency(replace(tables, latency_ms_SX=latency_SX))
    expected_NX = expected_latency_ms(made, tables, tables.indices("test"))
    assert np.isnan(expected_NX).any(axis=0).nonzero()[0].tolist() == [7]


def test_without_recorded_tokens_a_setting_has_one_expected_latency_per_dataset(tables):
    made = fit_expected_latency(replace(tables, recorded_counts=None))
    assert made.inputs == ()
    expected_NX = expected_latency_ms(made, replace(tables, recorded_counts=None), tables.indices("test"))
    assert len(np.unique(expected_NX[:, 0])) == 2
    mean_ms = tables.latency_ms_SX[tables.indices("train"), 0].mean()
    assert np.unique(expected_NX[:, 0]).mean() == pytest.approx(mean_ms, rel=0.05)


def test_more_tokens_are_never_expected_to_take_less_time(tables):
    text_S = tables.counts.text_tokens_S
    counts = replace(tables.counts, text_tokens_S=(text_S.max() - text_S).astype(np.float32))
    made = fit_expected_latency(replace(tables, recorded_counts=counts))
    assert float(made.text_ms_X.max()) == 0.0
    assert float(made.vision_ms_X.min()) > 0.05


def test_without_held_out_samples_no_error_is_reported(tables):
    splits = {**tables.split_indices, "val": tables.indices("train")}
    assert fit_expected_latency(tables.with_splits(splits)).held_out is None
