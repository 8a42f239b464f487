"""The reward, compared with values worked out by hand."""

import math
from dataclasses import fields

import pytest
import torch

from knobctl.data.knobs import KnobSpace
from knobctl.replay.reward import TERMS, RewardWeights, complexity, reward, reward_terms


def worth(accuracy, latency_ms, budget_ms, share, weights=None):
    values = (torch.tensor(float(value)) for value in (accuracy, latency_ms, budget_ms, share))
    return float(reward(*values, weights or RewardWeights()))


def test_latency_of_half_the_budget():
    # over = -0.5: sigmoid(-5) = 0.0066929; saving 0.1 * 0.5; complexity 0.05 * 0.4
    assert worth(1, 50, 100, 0.4) == pytest.approx(1 - 0.5 * 0.0066928509 + 0.05 - 0.02, abs=1e-6)


def test_latency_of_twice_the_budget():
    # over = 1: sigmoid(10) = 0.9999546; violation 10 * 1
    assert worth(0, 200, 100, 1.0) == pytest.approx(-0.5 * 0.9999546021 - 10.0 - 0.05, abs=1e-5)


def test_latency_equal_to_the_budget():
    assert worth(0, 100, 100, 0.0) == pytest.approx(-0.25, abs=1e-7)


@pytest.mark.parametrize(
    ("name", "change"), [("alpha", 0.5), ("beta", -0.25), ("gamma", -0.04), ("delta", 0), ("epsilon", -0.3)]
)
def test_each_weight_scales_its_own_term(name, change):
    base = {"alpha": 0.0, "beta": 0.0, "gamma": 0.0, "delta": 0.0, "epsilon": 0.0}
    # accuracy 0.5, latency 20 % over: sigmoid(2) = 0.8808; 0.2^2 = 0.04; complexity 0.3
    got = worth(0.5, 120, 100, 0.3, RewardWeights(**{**base, name: 1.0}))
    want = -1 / (1 + math.exp(-2)) if name == "beta" else change
    assert got == pytest.approx(want, abs=1e-6)


def test_the_terms_add_up_and_broadcast():
    generator = torch.Generator().manual_seed(0)
    outcomes = (torch.rand(4, 6, generator=generator), 100 * torch.rand(4, 6, generator=generator))
    inputs = (*outcomes, torch.tensor([[50.0]]), torch.rand(6, generator=generator), RewardWeights())
    terms = reward_terms(*inputs)
    assert tuple(terms) == TERMS == ("accuracy", "latency", "violation", "saving", "complexity")
    assert len(fields(RewardWeights)) == len(TERMS)
    torch.testing.assert_close(sum(terms.values()), reward(*inputs))
    assert reward(*inputs).shape == (4, 6)


def test_a_missing_outcome_has_no_reward():
    assert math.isnan(worth(float("nan"), 50, 100, 0.5))
    assert math.isnan(worth(1, float("nan"), 100, 0.5))


def test_complexity_is_the_mean_of_three_shares():
    space = KnobSpace()
    value_X = complexity(space, native_top_k=8, n_blocks=16)
    full = space.index(space.settings[-1])
    assert float(value_X[full]) == pytest.approx(1.0)
    # low tier: 2 of 12 crops; 4 of 8 experts; 12 of 16 blocks
    assert float(value_X[0]) == pytest.approx((2 / 12 + 0.5 + 0.75) / 3)
