"""The reward of one choice: accuracy gained, latency spent, complexity used. The formula is written only here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, TypeVar

from ..data.knobs import KnobSpace

if TYPE_CHECKING:  # the command line reads RewardWeights without loading numpy and torch
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

SIGMOID_SLOPE = 10.0  # steepness of the soft penalty where latency meets the budget
TERMS = ("accuracy", "latency", "violation", "saving", "complexity")

_Values = TypeVar("_Values", "Tensor", "NDArray[np.float32]")


@dataclass(frozen=True)
class RewardWeights:
    """Weights of the reward's terms, one for each of `TERMS`, named as in the formula (see `reward_terms`)."""

    alpha: float = field(default=1.0, metadata={"help": "Weight of accuracy in the reward, 0 or more."})
    beta: float = field(
        default=0.5, metadata={"help": "Weight of the soft penalty for exceeding the budget in the reward, 0 or more."}
    )
    gamma: float = field(
        default=10.0, metadata={"help": "Weight of the squared overrun of the budget in the reward, 0 or more."}
    )
    delta: float = field(
        default=0.1, metadata={"help": "Weight of the unused part of the budget in the reward, 0 or more."}
    )
    epsilon: float = field(default=0.05, metadata={"help": "Weight of complexity in the reward, 0 or more."})

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def complexity(space: KnobSpace, native_top_k: int, n_blocks: int) -> NDArray[np.float32]:
    """Returns how much of the model each setting uses, [X], X = len(space.settings).

    The mean of three shares: the tier's mean size, in crops or visual tokens, over the largest tier's, top-k over the
    native top-k, and blocks run over all blocks.
    """
    import numpy as np

    size = dict(zip(space.tiers, space.mean_tier_sizes, strict=True))
    most = max(space.mean_tier_sizes)
    shares = [(size[s.tier] / most, s.top_k / native_top_k, s.num_blocks / n_blocks) for s in space.settings]
    return np.array(shares, dtype=np.float64).mean(axis=1).astype(np.float32)


def reward_terms(
    accuracy: Tensor, latency_ms: Tensor, budget_ms: Tensor, complexity: Tensor, weights: RewardWeights
) -> dict[str, Tensor]:
    """Returns the signed terms by name, in the order of `TERMS`; they add up to the reward. All inputs broadcast.

    reward = alpha*accuracy - beta*sigmoid(10*(latency/budget - 1)) - gamma*max(0, latency/budget - 1)^2
             + delta*max(0, 1 - latency/budget) - epsilon*complexity

    NaN accuracy or latency (a missing outcome) gives NaN terms.
    """
    over = latency_ms / budget_ms - 1.0
    values = (
        weights.alpha * accuracy,
        -weights.beta * (SIGMOID_SLOPE * over).sigmoid(),
        -weights.gamma * over.clamp(min=0.0).square(),
        weights.delta * (-over).clamp(min=0.0),
        -weights.epsilon * complexity,
    )
    return dict(zip(TERMS, values, strict=True))


def reward(
    accuracy: Tensor, latency_ms: Tensor, budget_ms: Tensor, complexity: Tensor, weights: RewardWeights
) -> Tensor:
    """Returns the reward, the sum of `reward_terms`; all inputs broadcast. A missing outcome (NaN) gives NaN."""
    return total(reward_terms(accuracy, latency_ms, budget_ms, complexity, weights))


def total(terms: Mapping[str, _Values]) -> _Values:
    """Returns the sum of terms: the reward that they belong to."""
    return reduce(add, terms.values())
