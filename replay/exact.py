"""The expected reward of a two-stage policy and its gradient, summed over every setting: no sampling, no noise.

It is what GRPO estimates, so it is GRPO's yardstick. Shapes: B requests; J choices of Stage1, A of Stage2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def expected_reward(log_prob1_BJ: Tensor, log_prob2_BJA: Tensor, reward_BJA: Tensor) -> Tensor:
    """Returns sum_j p1(j) sum_a p2(a | j) reward(j, a), [..., B]. Rewards where a choice cannot be made are ignored."""
    value_BJ = stage2_value(log_prob2_BJA, reward_BJA)
    return (log_prob1_BJ.exp() * value_BJ).sum(dim=-1)


def stage2_value(log_prob2_BJA: Tensor, reward_BJA: Tensor) -> Tensor:
    """Returns what each choice of Stage1 is worth under Stage2, [..., B, J]."""
    reward_BJA = reward_BJA.masked_fill(log_prob2_BJA == -math.inf, 0.0)
    return (log_prob2_BJA.exp() * reward_BJA).sum(dim=-1)


def expected_reward_gradients(prob1_BJ: Tensor, prob2_BJA: Tensor, reward_BJA: Tensor) -> tuple[Tensor, Tensor]:
    """Returns d(mean expected reward)/d(logits) of both heads, [..., B, J] and [..., B, J, A].

    For a softmax, d E[r]/d logit_c = p_c * (r_c - E[r]); Stage2's is weighted by how likely Stage1 leads there.
    Rewards must be finite; those of choices with probability 0 do not matter.
    """
    requests = prob1_BJ.shape[-2]
    value_BJ = (prob2_BJA * reward_BJA).sum(dim=-1)
    mean_B1 = (prob1_BJ * value_BJ).sum(dim=-1, keepdim=True)
    gradient1_BJ = prob1_BJ * (value_BJ - mean_B1) / requests
    gradient2_BJA = (prob1_BJ[..., None] / requests) * prob2_BJA * (reward_BJA - value_BJ[..., None])
    return gradient1_BJ, gradient2_BJA


def best_reward(reward_BJA: Tensor, allowed_BJA: Tensor) -> Tensor:
    """Returns the oracle's reward, [B]: the best setting that each request has."""
    return reward_BJA.masked_fill(~allowed_BJA, -torch.inf).flatten(-2).amax(dim=-1)
