"""One request at a time gets the same choices as in a batch of the policy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from knobctl.controllers.budget_encoder import BudgetEncoder
from knobctl.controllers.checkpoint import Controllers
from knobctl.controllers.conditions import ModelIdentity
from knobctl.controllers.expected_latency import ExpectedLatency
from knobctl.controllers.single_request import NEAR_TIE, SingleRequestChooser
from knobctl.controllers.two_stage import TwoStagePolicy
from knobctl.data.errors import UnknownSetting
from knobctl.data.knobs import KnobSpace
from knobctl.data.protocols import Requests

D, REQUESTS = 64, 3000
SPACE = KnobSpace()


@pytest.fixture(scope="module")
def controllers() -> Controllers:
    """Random weights in every buffer; some settings are in no training sample."""
    made = Controllers.untrained(SPACE, ModelIdentity("m", D, 16, 8), (10.0, 40.0), BudgetEncoder.from_seed(D, 0))
    generator = torch.Generator().manual_seed(0)
    for stage in (made.stage1, made.stage2):
        floats = [buffer for buffer in stage.buffers() if buffer.is_floating_point() and buffer.shape[-1] != 8]
        for tensor in (*stage.parameters(), *floats):
            tensor.data.normal_(0.0, 0.3, generator=generator)
    made.stage1.allowed_J[3] = False
    made.stage2.allowed_JA[:, 7] = False
    expected = ExpectedLatency(SPACE, ["a"])
    settings = len(SPACE.settings)
    expected.offset_ms_GX[:] = torch.from_numpy(np.random.default_rng(1).uniform(10, 40, (1, settings)))
    expected.vision_ms_X[:], expected.text_ms_X[:], expected.least_ms_X[:] = 0.01, 0.02, 1.0
    expected.known_X[:] = True
    expected.known_X[5:30] = False
    expected.known_X[SPACE.setting_JA[3]] = False
    expected.known_X[SPACE.setting_JA[:, 7]] = False
    made.expected_latency = expected
    return made


@pytest.mark.parametrize("factor", [None, 0.9])
def test_choices_are_those_of_the_policy(controllers: Controllers, factor: float | None):
    rng = np.random.default_rng(2)
    requests = Requests(
        tuple(map(str, range(REQUESTS))),
        ("a",) * REQUESTS,
        rng.normal(size=(REQUESTS, D)).astype(np.float32),
        rng.integers(10, 45, REQUESTS).astype(np.float32),  # below 11: nothing fits
        vision_tokens_BT=rng.integers(10, 300, (REQUESTS, 3)).astype(np.float32),
        text_tokens_B=rng.integers(3, 30, REQUESTS).astype(np.float32),
    )
    token_BD = rng.normal(size=(REQUESTS, D)).astype(np.float16)
    policy = TwoStagePolicy(controllers, budget_factor=factor)
    tier_B, position_B = policy.choose_image(requests)
    top_k_B, blocks_B = policy.choose_compute(requests, tier_B, position_B, token_BD)
    expected = list(zip((tier_B * 5 + position_B).tolist(), (top_k_B * 5 + blocks_B).tolist(), strict=True))
    expected_BX = policy.expected_ms(requests)
    chooser, found = SingleRequestChooser(controllers, budget_factor=factor), []
    for row in range(REQUESTS):
        budget_ms = float(requests.budget_ms_B[row])
        allowed_JA = chooser.allowed(expected_BX[row], budget_ms)
        first = chooser.choose_image(requests.language_feature_BD[row], budget_ms, allowed_JA)
        second = chooser.choose_compute(token_BD[row], first.choice, allowed_JA)
        found.append((first.choice, second.choice))
    assert found == expected
    assert len(set(found)) > 40


def test_float32_changes_logits_far_less_than_a_near_tie(controllers: Controllers):
    rng, (fast, exact) = np.random.default_rng(3), SingleRequestChooser(controllers)._networks
    for _ in range(200):
        feature_D, token_D = rng.normal(size=D).astype(np.float32), rng.normal(size=D).astype(np.float16)
        pairs = [networks.image_logits(feature_D, 20.0) for networks in (fast, exact)]
        pairs += [networks.compute_logits(token_D, 4) for networks in (fast, exact)]
        for one, other in (pairs[:2], pairs[2:]):
            assert float((one.double() - other).abs().max()) < NEAR_TIE / 5
            assert not torch.equal(one.double(), other)


def test_near_ties_are_decided_in_float64(controllers: Controllers, monkeypatch):
    chooser = SingleRequestChooser(controllers)
    feature_D, allowed_JA = np.ones(D, np.float32), chooser.allowed(np.zeros(len(SPACE.settings)), 1.0)
    assert chooser.choose_image(feature_D, 20.0, allowed_JA).logit_C.dtype == np.float32
    monkeypatch.setattr("knobctl.controllers.single_request.NEAR_TIE", np.inf)
    assert chooser.choose_image(feature_D, 20.0, allowed_JA).logit_C.dtype == np.float64


def test_a_budget_whose_encoding_was_forgotten_is_encoded_again(controllers: Controllers, monkeypatch):
    chooser = SingleRequestChooser(controllers)
    feature_D, allowed_JA = np.ones(D, np.float32), chooser.allowed(np.zeros(len(SPACE.settings)), 1.0)
    before = chooser.choose_image(feature_D, 20.0, allowed_JA).logit_C
    monkeypatch.setattr("knobctl.controllers.single_request.MAX_BUDGETS", 1)
    assert not np.array_equal(chooser.choose_image(feature_D, 30.0, allowed_JA).logit_C, before)
    np.testing.assert_array_equal(chooser.choose_image(feature_D, 20.0, allowed_JA).logit_C, before)


def test_a_request_without_any_setting_is_an_error(controllers: Controllers):
    chooser = SingleRequestChooser(controllers)
    with pytest.raises(UnknownSetting, match="no setting is left"):
        chooser.choose_image(np.ones(D, np.float32), 20.0, np.zeros((15, 25), dtype=bool))
