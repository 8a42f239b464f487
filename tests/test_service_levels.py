"""Service levels: the test of a budget factor, the restriction of choices, and the calibration after training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from knobctl.controllers.budget_encoder import BudgetEncoder
from knobctl.controllers.checkpoint import Controllers
from knobctl.controllers.conditions import ModelIdentity
from knobctl.controllers.service_levels import DELTA, FACTORS, LEVELS, calibrated_level, least_images, p_value
from knobctl.controllers.two_stage import TwoStagePolicy
from knobctl.data.errors import KnobctlError
from knobctl.replay.latency_fit import expected_latency_ms, fit_expected_latency
from knobctl.replay.policies.decide import decide
from knobctl.replay.recipes import TrainConfig
from knobctl.replay.tables import ReplayTables
from knobctl.replay.training.calibration import (
    CALIBRATION,
    calibrated,
    can_be_met,
    decision_ms,
    drawn_requests,
    kept,
    kept_share,
    one_run,
    with_calibration_split,
)
from knobctl.replay.training.train import train_tables
from knobctl.tests.support.replay_inputs import QUICK, encoder_for, small_generated, tables_of


@pytest.fixture(scope="module")
def tables() -> ReplayTables:
    return tables_of(small_generated())


@pytest.fixture(scope="module")
def slowest(tables: ReplayTables) -> Controllers:
    """Controllers that always prefer the largest setting."""
    model = tables.model or ModelIdentity("generated", tables.d_model, 16, 8)
    made = Controllers.untrained(tables.space, model, tuple(tables.budgets_ms_M), BudgetEncoder.from_seed(24, 0))
    for stage in (made.stage1, made.stage2):
        logits = stage.head.biases[-1].data
        logits[:] = torch.arange(logits.shape[-1])
    made.expected_latency = fit_expected_latency(tables)
    return made


def test_the_fewest_images_of_each_level_are_those_of_the_binomial_distribution():
    assert [least_images(level) for level in LEVELS] == [29, 59, 299]
    for level in LEVELS:
        fewest = least_images(level)
        assert p_value(fewest, fewest, level) <= DELTA < p_value(fewest - 1, fewest - 1, level)


def test_the_p_value_is_the_binomial_probability_of_at_most_as_many_misses():
    assert p_value(2, 3, 0.9) == pytest.approx(0.9**3 + 3 * 0.1 * 0.9**2)
    assert p_value(0, 3, 0.9) == pytest.approx(1.0)
    assert p_value(4990, 5000, 0.99) < 1e-9


def test_the_last_factor_before_the_first_failure_is_used():
    images = 100
    good, bad = images, 80
    kept_F = [good, good, good, bad, good] + [good] * (len(FACTORS) - 5)  # a later success does not count
    assert calibrated_level(0.9, kept_F, images).budget_factor == FACTORS[2]
    assert calibrated_level(0.9, [bad] * len(FACTORS), images).budget_factor is None
    assert calibrated_level(0.9, [good] * len(FACTORS), images).budget_factor == FACTORS[-1]


def test_a_level_without_a_factor_says_what_it_needs():
    few = calibrated_level(0.95, [40] * len(FACTORS), 40)
    assert "needs at least 59 calibration images" in few.refusal()
    never = calibrated_level(0.95, [70] * len(FACTORS), 100)
    assert "even with the tightest budget factor 70 of 100" in never.refusal()
    assert calibrated_level(0.95, [100] * len(FACTORS), 100).refusal() is None


def test_choices_are_restricted_to_settings_that_are_expected_to_meet_the_budget(tables, slowest):
    sample_N, budgets = tables.indices("test"), (0, 1, 2)
    expected_NX = expected_latency_ms(slowest.expected_latency, tables, sample_N)
    plain_NM = decide(TwoStagePolicy(slowest), tables, sample_N, budgets)
    for factor in (0.6, 1.0):
        chosen_NM = decide(TwoStagePolicy(slowest, budget_factor=factor), tables, sample_N, budgets)
        assert (chosen_NM != plain_NM).any()
        for column, budget_ms in enumerate(tables.budgets_ms_M.tolist()):
            chosen_ms = np.take_along_axis(expected_NX, chosen_NM[:, column : column + 1], axis=1)[:, 0]
            some_fit = (expected_NX <= factor * budget_ms).any(axis=1)
            assert (chosen_ms[some_fit] <= factor * budget_ms).all()
            np.testing.assert_array_equal(chosen_ms[~some_fit], expected_NX[~some_fit].min(axis=1))
            unrestricted = chosen_NM[:, column] == plain_NM[:, column]
            assert unrestricted[(expected_NX <= factor * budget_ms).all(axis=1)].all()


def test_a_setting_that_a_sample_lacks_is_not_chosen_under_a_factor_either(tables, slowest):
    sample_N = tables.indices("test")
    first_N = decide(TwoStagePolicy(slowest, budget_factor=1.0), tables, sample_N, (2,))[:, 0]
    accuracy_SX = tables.accuracy_SX.copy()
    accuracy_SX[sample_N, first_N] = np.nan
    holed = replace(tables, accuracy_SX=accuracy_SX)
    second_N = decide(TwoStagePolicy(slowest, budget_factor=1.0), holed, sample_N, (2,))[:, 0]
    assert (second_N != first_N).all()


def test_a_request_without_token_counts_has_no_expected_latency(tables, slowest):
    requests = replace(tables.requests(tables.indices("test"), 0), vision_tokens_BT=None)
    with pytest.raises(KnobctlError, match="does not say how many tokens"):
        TwoStagePolicy(slowest, budget_factor=1.0).choose_image(requests)
    plain = replace(slowest, expected_latency=None)
    with pytest.raises(KnobctlError, match="no expected latencies"):
        TwoStagePolicy(plain, budget_factor=1.0).choose_image(tables.requests(tables.indices("test"), 0))


def test_one_feasible_request_is_drawn_from_each_image(tables):
    paired = replace(tables, cluster_S=np.arange(len(tables.sample_ids)) // 2)
    sample_N = paired.indices("test")
    feasible_NM = can_be_met(paired, sample_N, 0.0)
    assert not feasible_NM.all()
    row_C, budget_C = drawn_requests(paired, sample_N, 0.0, np.random.default_rng(0))
    assert feasible_NM[row_C, budget_C].all()
    images = paired.cluster_S[sample_N]
    assert len(set(images[row_C])) == len(row_C) == len(set(images[feasible_NM.any(axis=1)]))
    draws = {tuple(drawn_requests(paired, sample_N, 0.0, np.random.default_rng(seed))[1]) for seed in range(5)}
    assert len(draws) == 5


def test_a_calibration_request_has_the_latency_of_one_of_its_runs():
    runs_BXR = np.arange(24, dtype=np.float32).reshape(4, 2, 3)
    runs_BXR[1, 0, 1:] = np.nan  # one run only
    drawn = np.stack([one_run(runs_BXR, np.random.default_rng(seed)) for seed in range(60)])
    for request in range(4):
        for setting in range(2):
            known = runs_BXR[request, setting][np.isfinite(runs_BXR[request, setting])]
            assert set(drawn[:, request, setting]) == set(known)
    whole = drawn[:, 0] % 3  # which run: the same for all settings of a request
    np.testing.assert_array_equal(whole[:, 0], whole[:, 1])


def test_calibration_counts_single_runs_not_medians(tables, slowest):
    divided = tables.with_splits({**tables.split_indices, CALIBRATION: tables.indices("test")})
    sample_N = divided.measured(CALIBRATION)
    median_NXR = np.repeat(divided.latency_ms_SX[sample_N][:, :, None], 3, axis=2)
    slow_NXR = median_NXR * np.array([1.0, 1.0, 1e6], dtype=np.float32)  # the same medians
    plain = calibrated(slowest, divided)
    same = calibrated(slowest, divided, lambda _: median_NXR)
    slow = calibrated(slowest, divided, lambda _: slow_NXR)
    assert [level.kept for level in plain.levels] == [level.kept for level in same.levels]
    assert all(one.kept < other.kept for one, other in zip(slow.levels, plain.levels, strict=True))


def test_the_controllers_own_time_counts_against_the_budget(tables, slowest):
    sample_N = tables.indices("test")
    budget_N = np.full(len(sample_N), 2)
    policy = TwoStagePolicy(slowest, budget_factor=1.0)
    without = kept(tables, policy, sample_N, budget_N, 0.0)
    latency_ms_N = tables.latency_ms_SX[sample_N, decide(policy, tables, sample_N, (2,))[:, 0]]
    np.testing.assert_array_equal(without, latency_ms_N <= tables.budgets_ms_M[2])
    own_ms = float(tables.budgets_ms_M[2] - np.median(latency_ms_N))
    assert kept(tables, policy, sample_N, budget_N, own_ms).sum() < without.sum()
    assert 0 < decision_ms(policy, tables) < 1000


def test_every_image_has_the_same_weight_in_the_share(tables):
    sample_N = tables.indices("test")[:3]
    one_image_of_two = replace(tables, cluster_S=np.minimum(np.arange(len(tables.sample_ids)), sample_N[1]))
    kept_NM = np.ones((3, 3), dtype=bool)
    kept_NM[0] = False
    generous = replace(one_image_of_two, budgets_ms_M=np.full(3, 1e9, dtype=np.float32))
    assert kept_share(generous, sample_N, kept_NM, 0.0) == pytest.approx(0.5)  # samples 1 and 2 share an image
    impossible = replace(one_image_of_two, budgets_ms_M=np.full(3, 1e-9, dtype=np.float32))
    assert np.isnan(kept_share(impossible, sample_N, kept_NM, 0.0))


def test_half_of_the_images_of_val_calibrate_if_they_are_enough():
    few = tables_of(small_generated(val=56))
    assert with_calibration_split(few) is few
    enough = tables_of(small_generated(val=60))
    divided = with_calibration_split(enough)
    halves = divided.indices("val"), divided.indices(CALIBRATION)
    assert sorted(np.concatenate(halves)) == enough.indices("val").tolist()
    assert len(halves[1]) == 30
    np.testing.assert_array_equal(divided.indices("train"), enough.indices("train"))


def test_training_stores_the_calibration_in_the_checkpoint(tmp_path: Path):
    tables = tables_of(small_generated(val=80))
    train_tables(tables, encoder_for(tables), tmp_path / "c", TrainConfig(**QUICK), where="generated")
    found = Controllers.from_pretrained(tmp_path / "c").calibration
    assert found is not None
    assert [level.level for level in found.levels] == list(LEVELS)
    assert {level.images for level in found.levels} <= set(range(29, 41))
    assert found.levels[1].budget_factor is None  # 40 images cannot show 0.95
    assert found.controllers_ms > 0
    without = tables_of(small_generated(val=40))
    train_tables(without, encoder_for(without), tmp_path / "d", TrainConfig(**QUICK), where="generated")
    assert Controllers.from_pretrained(tmp_path / "d").calibration is None
