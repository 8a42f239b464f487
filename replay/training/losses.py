"""The losses of training, as functions of a policy's log-probabilities; autograd differentiates them.

Shapes: N seeds, B requests, G draws, J choices of Stage1, A of Stage2. A loss is the sum over seeds; they share no
parameters, so the gradient of each seed is that of its own loss.
"""

from __future__ import annotations

import math

from torch import Tensor

from .grpo import clip_ratio, clipped_loss, entropy, kl_estimate
from .inputs import ReplayInputs
from .policy import Batch, Draws, StackedPolicy


def grpo_loss(
    draws: Draws,
    advantage_NBG: Tensor,
    *,
    epsilon: float,
    beta: float,
    entropy_bonus: float,
    old_log_prob_NBG: Tensor | None = None,
    reference_log_prob_NBG: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns the GRPO loss and the columns of the log that it determines, per seed [N].

    Args:
        old_log_prob_NBG: of the policy that made the draws; None if it is this one. The probability ratio is then 1,
            the clip has no effect, and the gradient is that of -advantage * log-probability.
        reference_log_prob_NBG: of the policy in the KL term; None omits the term.
    """
    columns = {"entropy": entropy(draws.log_prob1_NBJ).mean(dim=-1) + entropy(draws.log_prob2_NBGA).mean(dim=(-2, -1))}
    log_prob = draws.log_prob_NBG
    if old_log_prob_NBG is None:
        loss_NBG = -advantage_NBG * log_prob
    else:
        loss_NBG = clipped_loss(log_prob, old_log_prob_NBG, advantage_NBG, epsilon)
        columns["clip_ratio"] = clip_ratio(log_prob.detach(), old_log_prob_NBG, advantage_NBG, epsilon)
    loss = loss_NBG.sum() / loss_NBG[0].numel()
    if entropy_bonus:
        loss = loss - entropy_bonus * columns["entropy"].sum()
    if reference_log_prob_NBG is not None:
        columns["kl"] = kl_estimate(log_prob, reference_log_prob_NBG).mean(dim=(-2, -1))
        loss = loss + beta * columns["kl"].sum()
    return loss, {name: value.detach() for name, value in columns.items()}


def exact_loss(
    policy: StackedPolicy, inputs: ReplayInputs, batch: Batch, *, entropy_bonus: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the loss, the expected rewards [N, B] and the entropies [N].

    The loss is the negative mean of expected reward and entropy bonus. The entropy is that of Stage1 plus that of
    Stage2 after each choice, weighted by the choice's probability, through which no gradient flows.
    """
    log_prob1, log_prob2 = policy.of_all(inputs, batch)
    value_NB = expected_reward(log_prob1, log_prob2, inputs.reward_NMJA[batch.sample_NB, batch.budget_NB])
    entropy_NB = entropy(log_prob1) + (log_prob1.detach().exp() * entropy(log_prob2)).sum(dim=-1)
    loss = -(value_NB + entropy_bonus * entropy_NB).mean(dim=-1).sum()
    return loss, value_NB.detach(), entropy_NB.detach().mean(dim=-1)


def expected_reward(log_prob1_BJ: Tensor, log_prob2_BJA: Tensor, reward_BJA: Tensor) -> Tensor:
    """Returns sum_j p1(j) sum_a p2(a | j) reward(j, a), [..., B]. Rewards of choices with probability 0 are ignored.

    GRPO estimates its gradient by sampling.
    """
    reward_BJA = reward_BJA.masked_fill(log_prob2_BJA == -math.inf, 0.0)
    return (log_prob1_BJ.exp() * (log_prob2_BJA.exp() * reward_BJA).sum(dim=-1)).sum(dim=-1)
