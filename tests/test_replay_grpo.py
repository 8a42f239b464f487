"""GRPO's pure functions; the sampled gradient compared with the exact one and with autograd."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import silu

from knobctl.controllers.mlp import log_probs
from knobctl.replay.training.grpo import (
    clip_ratio,
    clipped_loss,
    entropy,
    group_advantages,
    kl_estimate,
    sample_choices,
)
from knobctl.replay.training.losses import exact_loss, expected_reward, grpo_loss
from knobctl.replay.training.policy import Batch, StackedPolicy, gather_reward
from knobctl.tests.support.replay_inputs import small_inputs, small_networks


def batch_of(inputs, seeds=1, requests=4, group=5, seed=0):
    """Returns a batch and the uniforms of its draws."""
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randint(len(inputs), (seeds, requests), generator=generator)
    budget = torch.randint(inputs.budgets, (seeds, requests), generator=generator)
    return Batch(sample, budget), torch.rand(seeds, requests, group, 2, generator=generator, dtype=torch.float64)


def grpo_gradients(policy, inputs, batch, uniform, *, scale_rewards="none", clip=None, entropy_bonus=0.0):
    """Writes the gradients of the loss on new draws to both stages; returns the draws and their advantages."""
    draws = policy.draw(inputs, batch, uniform)
    reward = gather_reward(inputs, batch, draws.choice1_NBG, draws.choice2_NBG)
    advantage = group_advantages(reward, scale_rewards, clip)
    loss, _ = grpo_loss(draws, advantage, epsilon=0.2, beta=0.0, entropy_bonus=entropy_bonus)
    loss.backward()
    return draws, advantage


def plain_policy(policy):
    """Returns the same policy with plain autograd, and the leaf tensors with the parameters of both stages."""
    leaves = [stage.flat.detach().clone().requires_grad_() for stage in (policy.stage1, policy.stage2)]

    def network(stage, leaf):
        def logits(x):
            *hidden, last = zip(*stage.views(leaf), strict=True)
            for weight, bias in hidden:
                x = silu(x @ weight + bias)
            return x @ last[0] + last[1]

        return logits

    return StackedPolicy(network(policy.stage1, leaves[0]), network(policy.stage2, leaves[1])), leaves


def test_ties_give_zero_advantage():
    reward_BG = torch.tensor([[1.0, 4.0], [5.0, 5.0]])
    torch.testing.assert_close(group_advantages(reward_BG), torch.tensor([[-1.5, 1.5], [0.0, 0.0]]))
    for scale in ("none", "group", "batch"):
        assert not group_advantages(reward_BG, scale)[1].any()


def test_advantages_scaled_by_group_and_by_batch():
    reward_BG = torch.tensor([[1.0, 3.0], [5.0, 5.0]])
    # standard deviation of the group sqrt(2), of the batch sqrt(11/3): mean 3.5, squares 6.25 + .25 + 2.25 + 2.25
    by_group = group_advantages(reward_BG, "group", floor=0.0)[0]
    torch.testing.assert_close(by_group, torch.tensor([-1.0, 1.0]) / math.sqrt(2))
    by_batch = group_advantages(reward_BG, "batch", floor=0.0)[0]
    torch.testing.assert_close(by_batch, torch.tensor([-1.0, 1.0]) / math.sqrt(11 / 3))


def test_a_clipped_advantage_is_bounded():
    assert group_advantages(torch.tensor([[-90.0, 10.0]]), clip=1.0).tolist() == [[-1.0, 1.0]]


def test_a_group_of_one_gives_zero_advantage():
    for scale in ("none", "group", "batch"):
        assert group_advantages(torch.tensor([[7.0]]), scale).tolist() == [[0.0]]


def test_permuting_a_group_permutes_its_advantages():
    reward_BG = torch.randn(3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    order = torch.tensor([3, 0, 4, 1, 2])
    for scale in ("none", "group", "batch"):
        advantage_BG = group_advantages(reward_BG, scale)
        torch.testing.assert_close(group_advantages(reward_BG[:, order], scale), advantage_BG[:, order])


def test_the_clip_stops_gradients_beyond_its_range():
    old, ratio = torch.zeros(1, 4), torch.tensor([[1.5, 1.5, 0.5, 0.5]])
    advantage = torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    loss = clipped_loss(ratio.log(), old, advantage, epsilon=0.2)
    torch.testing.assert_close(loss, torch.tensor([[-1.2, 1.5, -0.5, 0.8]]))
    assert float(clip_ratio(ratio.log(), old, advantage, epsilon=0.2)) == 0.5


def test_the_kl_estimate_is_unbiased():
    policy, reference = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.3, 0.3, 0.4])
    estimate = (policy * kl_estimate(policy.log(), reference.log())).sum()
    torch.testing.assert_close(estimate, (policy * (policy / reference).log()).sum())


def test_entropy_of_a_fair_coin_and_of_a_certain_outcome():
    assert float(entropy(torch.tensor([0.5, 0.5]).log())) == pytest.approx(math.log(2))
    assert float(entropy(torch.tensor([1.0, 0.0]).log())) == 0.0


def test_masked_choices_have_probability_0_and_are_never_drawn():
    allowed = torch.tensor([False, True, False, True, False])
    log_prob = log_probs(lambda logits: logits, torch.tensor([9.0, 0.0, 9.0, 0.0, 9.0]), allowed)
    assert log_prob.exp().tolist() == [0.0, 0.5, 0.0, 0.5, 0.0]
    uniform = torch.tensor([0.0, 0.25, 0.4999, 0.5, 0.75, 1 - 2**-24])
    assert sample_choices(log_prob, uniform).tolist() == [1, 1, 1, 3, 3, 3]


def test_frequencies_of_draws_match_probabilities():
    log_prob = torch.tensor([0.1, 0.6, 0.3]).log()
    draws = sample_choices(log_prob, torch.rand(100_000, generator=torch.Generator().manual_seed(0)))
    assert (draws.bincount() / len(draws)).tolist() == pytest.approx([0.1, 0.6, 0.3], abs=0.01)


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize(("scale_rewards", "clip"), [("none", None), ("group", None), ("batch", 0.5)])
def test_the_grpo_gradient_equals_autograd_of_the_clipped_loss(holes, scale_rewards, clip):
    inputs, policy = small_inputs(holes=holes), StackedPolicy(*small_networks(seeds=2))
    batch, uniform = batch_of(inputs, seeds=2)
    options = {"scale_rewards": scale_rewards, "clip": clip, "entropy_bonus": 0.3}
    draws, advantage = grpo_gradients(policy, inputs, batch, uniform, **options)
    plain, leaves = plain_policy(policy)
    again = plain.of_draws(inputs, batch, draws)
    old = again.log_prob_NBG.detach()  # one update per batch: the ratio is 1 and the clip has no effect
    loss, _ = grpo_loss(again, advantage, epsilon=0.2, beta=0.0, entropy_bonus=0.3, old_log_prob_NBG=old)
    gradients = torch.autograd.grad(loss, leaves)
    for stage, gradient in zip((policy.stage1, policy.stage2), gradients, strict=True):
        torch.testing.assert_close(stage.grad, gradient)
        assert stage.grad.any()


@pytest.mark.parametrize("holes", [False, True])
def test_the_exact_gradient_equals_autograd(holes):
    inputs, policy = small_inputs(holes=holes), StackedPolicy(*small_networks(seeds=2))
    batch, _ = batch_of(inputs, seeds=2)
    exact_loss(policy, inputs, batch, entropy_bonus=0.3)[0].backward()
    plain, leaves = plain_policy(policy)
    gradients = torch.autograd.grad(exact_loss(plain, inputs, batch, entropy_bonus=0.3)[0], leaves)
    for stage, gradient in zip((policy.stage1, policy.stage2), gradients, strict=True):
        torch.testing.assert_close(stage.grad, gradient)
        assert stage.grad.any()


def test_the_input_gradient_equals_autograd():
    """A trained budget encoder gets its gradient through the inputs of Stage1."""
    inputs, policy = small_inputs(), StackedPolicy(*small_networks(seeds=2))
    batch, _ = batch_of(inputs, seeds=2)
    found = []
    for which in (policy, plain_policy(policy)[0]):
        budget_MF = inputs.budget_MF.clone().requires_grad_()
        exact_loss(which, replace(inputs, budget_MF=budget_MF), batch, entropy_bonus=0.3)[0].backward()
        found.append(budget_MF.grad)
    torch.testing.assert_close(found[0], found[1])
    assert found[0].any()


def test_every_parameter_gets_a_gradient():
    inputs, policy = small_inputs(), StackedPolicy(*small_networks())
    batch, uniform = batch_of(inputs, requests=32)
    for fill in (
        lambda: exact_loss(policy, inputs, batch, entropy_bonus=0.0)[0].backward(),
        lambda: grpo_gradients(policy, inputs, batch, uniform),
    ):
        fill()
        for stage in (policy.stage1, policy.stage2):
            weights, biases = stage.views(stage.grad)
            assert all(bool(part.any()) for part in (*weights, *biases))
            stage.grad.zero_()


def test_seeds_trained_together_are_independent():
    inputs = small_inputs()
    together = StackedPolicy(*small_networks(seeds=3))
    batch, uniform = batch_of(inputs, seeds=3)
    grpo_gradients(together, inputs, batch, uniform, scale_rewards="group", entropy_bonus=0.1)
    for seed in range(3):
        alone = StackedPolicy(*small_networks(seeds=1, first_seed=seed))
        part = slice(seed, seed + 1)
        own = Batch(batch.sample_NB[part], batch.budget_NB[part])
        grpo_gradients(alone, inputs, own, uniform[part], scale_rewards="group", entropy_bonus=0.1)
        torch.testing.assert_close(alone.stage1.grad[0], together.stage1.grad[seed])
        torch.testing.assert_close(alone.stage2.grad[0], together.stage2.grad[seed])


def test_the_expected_sampled_gradient_is_the_exact_one_times_g_minus_1_over_g():
    """Enumerates all groups of 2 draws with their probabilities, so the expectation is exact."""
    prob1, prob2 = torch.tensor([0.2, 0.8]).double(), torch.tensor([[0.5, 0.5], [0.1, 0.9]]).double()
    reward = torch.tensor([[1.0, -2.0], [0.5, 3.0]]).double()
    logits = [prob.log().requires_grad_() for prob in (prob1, prob2)]
    log_prob1, log_prob2 = (torch.log_softmax(logit, dim=-1) for logit in logits)
    exact1, exact2 = torch.autograd.grad(expected_reward(log_prob1[None], log_prob2[None], reward[None]).sum(), logits)
    mean1, mean2 = torch.zeros(2).double(), torch.zeros(2, 2).double()
    group = 2
    for draws in itertools.product(itertools.product(range(2), range(2)), repeat=group):
        probability = math.prod(float(prob1[j] * prob2[j, a]) for j, a in draws)
        advantages = group_advantages(torch.stack([reward[j, a] for j, a in draws])[None])[0]
        for (j, a), advantage in zip(draws, advantages, strict=True):
            mean1 += probability * advantage / group * (torch.eye(2)[j] - prob1)
            mean2[j] += probability * advantage / group * (torch.eye(2)[a] - prob2[j])
    torch.testing.assert_close(mean1, exact1 * (group - 1) / group)
    torch.testing.assert_close(mean2, exact2 * (group - 1) / group)


def test_the_mean_grpo_gradient_approaches_the_exact_one_times_g_minus_1_over_g():
    inputs, policy = small_inputs(samples=1, budgets=1), StackedPolicy(*small_networks())
    group, requests = 4, 60_000
    sample = torch.zeros(1, requests, dtype=torch.int64)
    uniform = torch.rand(1, requests, group, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    grpo_gradients(policy, inputs, Batch(sample, sample), uniform)
    sampled = [stage.grad.clone() for stage in (policy.stage1, policy.stage2)]
    exact_loss(policy, inputs, Batch(sample[:, :1], sample[:, :1]), entropy_bonus=0.0)[0].backward()
    for grad, stage in zip(sampled, (policy.stage1, policy.stage2), strict=True):
        wanted = stage.grad * (group - 1) / group
        assert float((grad - wanted).norm() / wanted.norm()) < 0.03


def test_the_expected_reward():
    log_prob1, log_prob2 = torch.tensor([[0.25, 0.75]]).log(), torch.tensor([[[1.0, 0.0], [0.5, 0.5]]]).log()
    reward = torch.tensor([[[4.0, float("nan")], [0.0, 2.0]]])  # rewards of impossible choices are ignored
    assert float(expected_reward(log_prob1, log_prob2, reward)) == pytest.approx(0.25 * 4 + 0.75 * 1)
