"""The reward of one choice: accuracy won, latency spent, complexity used. The one home of the formula."""

from __future__ import annotations

import torch
from torch import Tensor

from ..data.knobs import KnobSpace
from .reward_weights import RewardWeights

SIGMOID_SLOPE = 10.0  # how sharply the soft penalty rises where latency meets the budget


def complexity(space: KnobSpace, native_top_k: int, n_blocks: int) -> Tensor:
    """Returns how much of the model each setting uses, [X] float32, X = len(space.settings).

    The mean of three shares: the tier's mean crops of the highest tier's, top-k of the native top-k, blocks run of all.
    """
    crops = dict(zip(space.tiers, space.mean_crops, strict=True))
    most = max(space.mean_crops)
    shares = [(crops[s.tier] / most, s.top_k / native_top_k, s.num_blocks / n_blocks) for s in space.settings]
    return torch.tensor(shares, dtype=torch.float64).mean(dim=1).to(torch.float32)


def reward_terms(
    accuracy: Tensor, latency_ms: Tensor, budget_ms: Tensor, complexity: Tensor, weights: RewardWeights
) -> dict[str, Tensor]:
    """Returns the five signed terms, which add up to the reward; all inputs broadcast against each other.

    reward = alpha*accuracy - beta*sigmoid(10*(latency/budget - 1)) - gamma*max(0, latency/budget - 1)^2
             + delta*max(0, 1 - latency/budget) - epsilon*complexity
    """
    over = latency_ms / budget_ms - 1.0
    return {
        "accuracy": weights.alpha * accuracy,
        "latency": -weights.beta * torch.sigmoid(SIGMOID_SLOPE * over),
        "violation": -weights.gamma * over.clamp(min=0.0).square(),
        "saving": weights.delta * (-over).clamp(min=0.0),
        "complexity": -weights.epsilon * complexity,
    }


def reward(
    accuracy: Tensor, latency_ms: Tensor, budget_ms: Tensor, complexity: Tensor, weights: RewardWeights
) -> Tensor:
    """Returns the reward; all inputs broadcast. NaN accuracy or latency (a hole of the cache) gives NaN."""
    terms = reward_terms(accuracy, latency_ms, budget_ms, complexity, weights)
    return terms["accuracy"] + terms["latency"] + terms["violation"] + terms["saving"] + terms["complexity"]
