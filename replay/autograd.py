"""The same losses as `step.py`, by autograd: for KL, several iterations a batch, or a budget encoder that learns.

Shapes: N seeds, B requests, G draws, J choices of Stage1, A of Stage2. Slower by several times, and general.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..controllers.mlp import mlp_forward
from .exact import expected_reward
from .grpo import clip_ratio, clipped_loss, entropy, kl_estimate, masked_log_softmax
from .inputs import ReplayInputs
from .stacked import StackedMlp
from .step import Batch, stage2_features

Layers = tuple[list[Tensor], list[Tensor]]


@dataclass(frozen=True)
class Leaves:
    """Both stages' parameters as views of two flat leaves that carry gradients."""

    flats: tuple[Tensor, Tensor]
    stage1: Layers
    stage2: Layers

    @classmethod
    def of(cls, stage1: StackedMlp, stage2: StackedMlp) -> Leaves:
        flats = tuple(stage.flat.detach().requires_grad_(True) for stage in (stage1, stage2))
        return cls((flats[0], flats[1]), stage1.views(flats[0]), stage2.views(flats[1]))


@dataclass(frozen=True)
class Drawn:
    """A batch's joint draws: choices of both stages, advantages, log-probabilities when drawn; all [N, B, G]."""

    choice1_NBG: Tensor
    choice2_NBG: Tensor
    advantage_NBG: Tensor
    old_log_prob_NBG: Tensor


def log_probs1(layers: Layers, inputs: ReplayInputs, batch: Batch, budget_MF: Tensor | None = None) -> Tensor:
    """Returns Stage1's log-probabilities, [N, B, J]; `budget_MF` stands in for the frozen budget features."""
    budget_MF = inputs.budget_MF if budget_MF is None else budget_MF
    x = torch.cat([inputs.language_NF[batch.sample_NB], budget_MF[batch.budget_NB]], dim=-1)
    allowed = None if inputs.allowed_NMJ is None else inputs.allowed_NMJ[batch.sample_NB, batch.budget_NB]
    return masked_log_softmax(mlp_forward(*layers, x), allowed)


def log_probs2(layers: Layers, inputs: ReplayInputs, batch: Batch, choice1_NBC: Tensor) -> Tensor:
    """Returns Stage2's log-probabilities after these choices of Stage1, [N, B, C, A]."""
    sample = batch.sample_NB[..., None].expand_as(choice1_NBC)
    x = stage2_features(inputs, sample, choice1_NBC, batch.budget_NB[..., None].expand_as(choice1_NBC))
    logits = mlp_forward(*layers, x.flatten(1, 2)).unflatten(1, choice1_NBC.shape[1:])
    return masked_log_softmax(logits, None if inputs.allowed_NJA is None else inputs.allowed_NJA[sample, choice1_NBC])


def joint_log_prob(log_prob1_NBJ: Tensor, log_prob2_NBGA: Tensor, drawn1: Tensor, drawn2: Tensor) -> Tensor:
    """Returns each joint draw's log-probability, [N, B, G]."""
    return log_prob1_NBJ.gather(-1, drawn1) + log_prob2_NBGA.gather(-1, drawn2[..., None])[..., 0]


def grpo_loss(
    leaves: Leaves,
    inputs: ReplayInputs,
    batch: Batch,
    drawn: Drawn,
    *,
    epsilon: float,
    beta: float,
    entropy_bonus: float,
    reference_log_prob_NBG: Tensor | None,
    budget_MF: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns the loss summed over seeds (they share no parameter) and what the log shows, per seed [N]."""
    log_prob1 = log_probs1(leaves.stage1, inputs, batch, budget_MF)
    log_prob2 = log_probs2(leaves.stage2, inputs, batch, drawn.choice1_NBG)
    log_prob = joint_log_prob(log_prob1, log_prob2, drawn.choice1_NBG, drawn.choice2_NBG)
    entropy_N = entropy(log_prob1).mean(dim=-1) + entropy(log_prob2).mean(dim=(-2, -1))
    loss_N = clipped_loss(log_prob, drawn.old_log_prob_NBG, drawn.advantage_NBG, epsilon).mean(dim=(-2, -1))
    loss_N = loss_N - entropy_bonus * entropy_N
    kl_N = torch.zeros_like(loss_N)
    if reference_log_prob_NBG is not None:
        kl_N = kl_estimate(log_prob, reference_log_prob_NBG).mean(dim=(-2, -1))
        loss_N = loss_N + beta * kl_N
    clipped = clip_ratio(log_prob.detach(), drawn.old_log_prob_NBG, drawn.advantage_NBG, epsilon)
    return loss_N.sum(), {"entropy": entropy_N.detach(), "kl": kl_N.detach(), "clip_ratio": clipped}


def exact_loss(
    leaves: Leaves, inputs: ReplayInputs, batch: Batch, *, entropy_bonus: float, budget_MF: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Returns minus the expected reward and the bonus, summed over seeds, and the expected reward [N, B]."""
    choices = inputs.token_NJMF.shape[1]
    every_NBJ = torch.arange(choices, device=batch.sample_NB.device).expand(*batch.sample_NB.shape, choices)
    log_prob1 = log_probs1(leaves.stage1, inputs, batch, budget_MF)
    log_prob2 = log_probs2(leaves.stage2, inputs, batch, every_NBJ)
    value_NB = expected_reward(log_prob1, log_prob2, inputs.reward_NMJA[batch.sample_NB, batch.budget_NB])
    bonus_NB = entropy(log_prob1) + (log_prob1.detach().exp() * entropy(log_prob2)).sum(dim=-1)
    return -(value_NB + entropy_bonus * bonus_NB).mean(dim=-1).sum(), value_NB.detach()
