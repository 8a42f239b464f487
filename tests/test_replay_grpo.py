"""GRPO's pure functions, and the sampled gradient against the exact one and against autograd."""

import itertools
import math

import pytest
import torch
from replay_cases import small_inputs, small_networks

from knobctl.replay.autograd import Drawn, Leaves, exact_loss, grpo_loss, joint_log_prob, log_probs1, log_probs2
from knobctl.replay.exact import expected_reward, expected_reward_gradients
from knobctl.replay.grpo import (
    clip_ratio,
    clipped_loss,
    entropy,
    group_advantages,
    kl_estimate,
    masked_log_softmax,
    sample_choices,
)
from knobctl.replay.step import Batch, exact_step, grpo_step


def batch_of(inputs, seeds=1, requests=4, group=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randint(len(inputs), (seeds, requests), generator=generator)
    budget = torch.randint(inputs.budgets, (seeds, requests), generator=generator)
    return Batch(sample, budget, torch.rand(seeds, requests, group, 2, generator=generator, dtype=torch.float64))


def test_ties_teach_nothing():
    reward_BG = torch.tensor([[1.0, 4.0], [5.0, 5.0]])
    torch.testing.assert_close(group_advantages(reward_BG), torch.tensor([[-1.5, 1.5], [0.0, 0.0]]))
    for scale in ("none", "group", "batch"):
        assert not group_advantages(reward_BG, scale)[1].any()


def test_scaling_by_group_and_by_batch():
    reward_BG = torch.tensor([[1.0, 3.0], [5.0, 5.0]])
    # the group's deviation is sqrt(2); the batch's is sqrt(11/3): mean 3.5, squares 6.25 + .25 + 2.25 + 2.25
    by_group = group_advantages(reward_BG, "group", floor=0.0)[0]
    torch.testing.assert_close(by_group, torch.tensor([-1.0, 1.0]) / math.sqrt(2))
    by_batch = group_advantages(reward_BG, "batch", floor=0.0)[0]
    torch.testing.assert_close(by_batch, torch.tensor([-1.0, 1.0]) / math.sqrt(11 / 3))


def test_a_clipped_advantage_is_bounded():
    assert group_advantages(torch.tensor([[-90.0, 10.0]]), clip=1.0).tolist() == [[-1.0, 1.0]]


def test_a_group_of_one_prefers_nothing():
    for scale in ("none", "group", "batch"):
        assert group_advantages(torch.tensor([[7.0]]), scale).tolist() == [[0.0]]


def test_permuting_a_group_permutes_its_advantages():
    reward_BG = torch.randn(3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    order = torch.tensor([3, 0, 4, 1, 2])
    for scale in ("none", "group", "batch"):
        advantage_BG = group_advantages(reward_BG, scale)
        torch.testing.assert_close(group_advantages(reward_BG[:, order], scale), advantage_BG[:, order])


def test_the_clip_stops_what_has_moved_too_far():
    old, ratio = torch.zeros(1, 4), torch.tensor([[1.5, 1.5, 0.5, 0.5]])
    advantage = torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    loss = clipped_loss(ratio.log(), old, advantage, epsilon=0.2)
    torch.testing.assert_close(loss, torch.tensor([[-1.2, 1.5, -0.5, 0.8]]))
    assert float(clip_ratio(ratio.log(), old, advantage, epsilon=0.2)) == 0.5


def test_the_kl_estimate_averages_to_the_kl():
    policy, reference = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.3, 0.3, 0.4])
    estimate = (policy * kl_estimate(policy.log(), reference.log())).sum()
    torch.testing.assert_close(estimate, (policy * (policy / reference).log()).sum())


def test_entropy_of_a_coin_and_of_a_certainty():
    assert float(entropy(torch.tensor([0.5, 0.5]).log())) == pytest.approx(math.log(2))
    assert float(entropy(torch.tensor([1.0, 0.0]).log())) == 0.0


def test_what_is_not_allowed_has_probability_exactly_0_and_is_never_drawn():
    allowed = torch.tensor([False, True, False, True, False])
    log_prob = masked_log_softmax(torch.tensor([9.0, 0.0, 9.0, 0.0, 9.0]), allowed)
    assert log_prob.exp().tolist() == [0.0, 0.5, 0.0, 0.5, 0.0]
    uniform = torch.tensor([0.0, 0.25, 0.4999, 0.5, 0.75, 1 - 2**-24])
    assert sample_choices(log_prob, uniform).tolist() == [1, 1, 1, 3, 3, 3]


def test_draws_come_as_often_as_they_are_likely():
    log_prob = torch.tensor([0.1, 0.6, 0.3]).log()
    draws = sample_choices(log_prob, torch.rand(100_000, generator=torch.Generator().manual_seed(0)))
    assert (draws.bincount() / len(draws)).tolist() == pytest.approx([0.1, 0.6, 0.3], abs=0.01)


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize(("scale_rewards", "clip"), [("none", None), ("group", None), ("batch", 0.5)])
def test_the_grpo_step_is_autograds(holes, scale_rewards, clip):
    inputs, (stage1, stage2) = small_inputs(holes=holes), small_networks(seeds=2)
    batch = batch_of(inputs, seeds=2)
    result = grpo_step(
        stage1, stage2, inputs, batch, scale_rewards=scale_rewards, entropy_bonus=0.3, advantage_clip=clip
    )
    choice1, choice2 = result.choice_NBG // 3, result.choice_NBG % 3
    leaves = Leaves.of(stage1, stage2)
    with torch.no_grad():
        log_prob1, log_prob2 = (
            log_probs1(leaves.stage1, inputs, batch),
            log_probs2(leaves.stage2, inputs, batch, choice1),
        )
        old = joint_log_prob(log_prob1, log_prob2, choice1, choice2)
    drawn = Drawn(choice1, choice2, group_advantages(result.reward_NBG, scale_rewards, clip), old)
    loss, _ = grpo_loss(
        leaves, inputs, batch, drawn, epsilon=0.2, beta=0.0, entropy_bonus=0.3, reference_log_prob_NBG=None
    )
    gradients = torch.autograd.grad(loss, leaves.flats)
    torch.testing.assert_close(stage1.grad, gradients[0])
    torch.testing.assert_close(stage2.grad, gradients[1])
    assert stage1.grad.any()
    assert stage2.grad.any()


@pytest.mark.parametrize("holes", [False, True])
def test_the_exact_step_is_autograds(holes):
    inputs, (stage1, stage2) = small_inputs(holes=holes), small_networks(seeds=2)
    batch = batch_of(inputs, seeds=2)
    exact_step(stage1, stage2, inputs, batch, entropy_bonus=0.3)
    leaves = Leaves.of(stage1, stage2)
    loss, _ = exact_loss(leaves, inputs, batch, entropy_bonus=0.3)
    gradients = torch.autograd.grad(loss, leaves.flats)
    torch.testing.assert_close(stage1.grad, gradients[0])
    torch.testing.assert_close(stage2.grad, gradients[1])


def test_every_parameter_gets_a_gradient():
    inputs, (stage1, stage2) = small_inputs(), small_networks()
    for step in (
        lambda batch: exact_step(stage1, stage2, inputs, batch, entropy_bonus=0.0),
        lambda batch: grpo_step(stage1, stage2, inputs, batch, scale_rewards="none", entropy_bonus=0.0),
    ):
        step(batch_of(inputs, requests=32))
        for stage in (stage1, stage2):
            weights, biases = stage.views(stage.grad)
            assert all(bool(part.any()) for part in (*weights, *biases))


def test_seeds_side_by_side_do_not_touch_each_other():
    inputs = small_inputs()
    together, batch = small_networks(seeds=3), batch_of(inputs, seeds=3)
    grpo_step(*together, inputs, batch, scale_rewards="group", entropy_bonus=0.1)
    for seed in range(3):
        alone = small_networks(seeds=3)
        for stage in alone:
            stage.flat, stage.grad = stage.flat[seed : seed + 1], stage.grad[seed : seed + 1]
            stage.weights, stage.biases = stage.views(stage.flat)
            stage._weight_grads, stage._bias_grads = stage.views(stage.grad)
        part = slice(seed, seed + 1)
        own = Batch(batch.sample_NB[part], batch.budget_NB[part], batch.uniform_NBG2[part])
        grpo_step(*alone, inputs, own, scale_rewards="group", entropy_bonus=0.1)
        torch.testing.assert_close(alone[0].grad[0], together[0].grad[seed])
        torch.testing.assert_close(alone[1].grad[0], together[1].grad[seed])


def test_the_sampled_gradients_mean_is_the_exact_one_times_g_minus_1_over_g():
    """Every group of 2 draws is listed with its probability, so the mean is exact: no tolerance for luck."""
    prob1, prob2 = torch.tensor([0.2, 0.8]).double(), torch.tensor([[0.5, 0.5], [0.1, 0.9]]).double()
    reward = torch.tensor([[1.0, -2.0], [0.5, 3.0]]).double()
    exact1, exact2 = expected_reward_gradients(prob1[None], prob2[None], reward[None])
    mean1, mean2 = torch.zeros(2).double(), torch.zeros(2, 2).double()
    group = 2
    for draws in itertools.product(itertools.product(range(2), range(2)), repeat=group):
        likely = math.prod(float(prob1[j] * prob2[j, a]) for j, a in draws)
        advantages = group_advantages(torch.stack([reward[j, a] for j, a in draws])[None])[0]
        for (j, a), advantage in zip(draws, advantages, strict=True):
            mean1 += likely * advantage / group * (torch.eye(2)[j] - prob1)
            mean2[j] += likely * advantage / group * (torch.eye(2)[a] - prob2[j])
    torch.testing.assert_close(mean1, exact1[0] * (group - 1) / group)
    torch.testing.assert_close(mean2, exact2[0] * (group - 1) / group)


def test_the_grpo_steps_mean_gradient_is_the_exact_steps_times_g_minus_1_over_g():
    inputs, (stage1, stage2) = small_inputs(samples=1, budgets=1), small_networks()
    group, requests = 4, 60_000
    sample = torch.zeros(1, requests, dtype=torch.int64)
    uniform = torch.rand(1, requests, group, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    grpo_step(stage1, stage2, inputs, Batch(sample, sample, uniform), scale_rewards="none", entropy_bonus=0.0)
    sampled1, sampled2 = stage1.grad.clone(), stage2.grad.clone()
    exact_step(stage1, stage2, inputs, Batch(sample[:, :1], sample[:, :1]), entropy_bonus=0.0)
    for sampled, exact in ((sampled1, stage1.grad), (sampled2, stage2.grad)):
        wanted = exact * (group - 1) / group
        assert float((sampled - wanted).norm() / wanted.norm()) < 0.03


def test_the_expected_reward_by_hand():
    log_prob1, log_prob2 = torch.tensor([[0.25, 0.75]]).log(), torch.tensor([[[1.0, 0.0], [0.5, 0.5]]]).log()
    reward = torch.tensor([[[4.0, float("nan")], [0.0, 2.0]]])  # what cannot be chosen is not looked at
    assert float(expected_reward(log_prob1, log_prob2, reward)) == pytest.approx(0.25 * 4 + 0.75 * 1)
