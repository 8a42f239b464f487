"""One training step for N seeds at once: draw or sum over choices, and the gradient of both stages in closed form.

Shapes: N seeds, B requests (a sample under a budget), G draws in a group, J choices of Stage1, A of Stage2.
The losses are those of `grpo.py` (with one update per batch the clip never acts) and `exact.py`; a test holds the
gradients here equal to autograd's of those.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .exact import expected_reward_gradients
from .grpo import group_advantages, sample_choices
from .inputs import ReplayInputs
from .stacked import StackedMlp


@dataclass
class Batch:
    """Which requests a step takes: rows of the split and budgets, [N, B] each; uniforms for GRPO's draws."""

    sample_NB: Tensor
    budget_NB: Tensor
    uniform_NBG2: Tensor | None = None


@dataclass
class StepResult:
    """What a step saw, for the logs: draws [N, B, G], or one expected value per request [N, B, 1] if exact."""

    reward_NBG: Tensor
    entropy_N: Tensor
    choice_NBG: Tensor | None = None  # flat (j, a) of each draw


def stage1_features(inputs: ReplayInputs, batch: Batch) -> Tensor:
    """Returns Stage1's inputs, [N, B, F]."""
    return torch.cat([inputs.language_NF[batch.sample_NB], inputs.budget_MF[batch.budget_NB]], dim=-1)


def stage2_features(inputs: ReplayInputs, sample: Tensor, choice: Tensor, budget: Tensor) -> Tensor:
    """Returns Stage2's inputs for Stage1's choices, [..., F + H]; index tensors of one shape."""
    choices, budgets = inputs.token_NJMF.shape[1:3]
    row = (sample * choices + choice) * budgets + budget
    features = inputs.token_NJMF.view(-1, inputs.token_NJMF.shape[-1]).index_select(0, row.flatten())
    place = inputs.place_JH.index_select(0, choice.flatten())
    return torch.cat([features, place], dim=-1).view(*row.shape, -1)


def masked(logits: Tensor, allowed: Tensor | None) -> Tensor:
    """Returns the logits with -inf where a choice is not allowed."""
    return logits if allowed is None else logits.masked_fill(~allowed, -math.inf)


def entropy_and_gradient(log_prob: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the entropy over the last dimension [...] and its gradient with respect to the logits [..., C]."""
    finite = log_prob.clamp(min=-80.0)  # e^-80 is 0 in the sum, and 0 * -80 is 0 where 0 * -inf is not
    prob = log_prob.exp()
    value = -(prob * finite).sum(dim=-1, keepdim=True)
    return value[..., 0], -prob * (finite + value)


def grpo_step(
    stage1: StackedMlp,
    stage2: StackedMlp,
    inputs: ReplayInputs,
    batch: Batch,
    *,
    scale_rewards: str,
    entropy_bonus: float,
    advantage_clip: float | None = None,
) -> StepResult:
    """Fills both networks' gradients with those of the GRPO loss (on-policy, no KL) minus the entropy bonus."""
    assert batch.uniform_NBG2 is not None, "GRPO draws"
    seeds, requests, group = batch.uniform_NBG2.shape[:3]
    sample_NBG = batch.sample_NB[..., None].expand(-1, -1, group)
    budget_NBG = batch.budget_NB[..., None].expand(-1, -1, group)
    logit1_NBJ, tape1 = stage1.forward(stage1_features(inputs, batch))
    if inputs.allowed_NMJ is not None:
        logit1_NBJ = masked(logit1_NBJ, inputs.allowed_NMJ[batch.sample_NB, batch.budget_NB])
    log_prob1_NBJ = torch.log_softmax(logit1_NBJ, dim=-1)
    choice1_NBG = sample_choices(log_prob1_NBJ, batch.uniform_NBG2[..., 0].contiguous())

    x2 = stage2_features(inputs, sample_NBG, choice1_NBG, budget_NBG)
    logit2_NRA, tape2 = stage2.forward(x2.flatten(1, 2))
    if inputs.allowed_NJA is not None:
        logit2_NRA = masked(logit2_NRA, inputs.allowed_NJA[sample_NBG, choice1_NBG].flatten(1, 2))
    log_prob2_NRA = torch.log_softmax(logit2_NRA, dim=-1)
    choice2_NR1 = sample_choices(log_prob2_NRA, batch.uniform_NBG2[..., 1].flatten(1, 2)[..., None])

    reward_NBG = _gather_reward(inputs, sample_NBG, budget_NBG, choice1_NBG, choice2_NR1.view_as(choice1_NBG))
    advantage_NBG = group_advantages(reward_NBG, scale_rewards, advantage_clip)
    weight_NBG = advantage_NBG / (requests * group)

    grad1_NBJ = log_prob1_NBJ.exp() * weight_NBG.sum(dim=-1, keepdim=True)
    grad1_NBJ.scatter_add_(-1, choice1_NBG, -weight_NBG)
    weight_NR1 = weight_NBG.reshape(seeds, -1, 1)
    grad2_NRA = log_prob2_NRA.exp() * weight_NR1
    grad2_NRA.scatter_add_(-1, choice2_NR1, -weight_NR1)
    entropy_N = torch.zeros(seeds, device=reward_NBG.device)
    if entropy_bonus:
        entropy1_NB, slope1_NBJ = entropy_and_gradient(log_prob1_NBJ)
        entropy2_NR, slope2_NRA = entropy_and_gradient(log_prob2_NRA)
        grad1_NBJ -= slope1_NBJ * (entropy_bonus / requests)
        grad2_NRA -= slope2_NRA * (entropy_bonus / (requests * group))
        entropy_N = entropy1_NB.mean(dim=-1) + entropy2_NR.mean(dim=-1)
    stage1.backward(grad1_NBJ, tape1)
    stage2.backward(grad2_NRA, tape2)
    choice_NBG = choice1_NBG * inputs.reward_NMJA.shape[-1] + choice2_NR1.view_as(choice1_NBG)
    return StepResult(reward_NBG, entropy_N, choice_NBG)


def exact_step(
    stage1: StackedMlp, stage2: StackedMlp, inputs: ReplayInputs, batch: Batch, *, entropy_bonus: float
) -> StepResult:
    """Fills both networks' gradients with those of minus the mean expected reward, minus the entropy bonus.

    The bonus is Stage1's entropy plus Stage2's at each pair, weighted by how likely Stage1 leads there (held fixed).
    """
    seeds, requests = batch.sample_NB.shape
    choices = inputs.token_NJMF.shape[1]
    shape = (seeds, requests, choices)
    choice_NBJ = torch.arange(choices, device=batch.sample_NB.device).expand(shape)
    logit1_NBJ, tape1 = stage1.forward(stage1_features(inputs, batch))
    x2 = stage2_features(
        inputs, batch.sample_NB[..., None].expand(shape), choice_NBJ, batch.budget_NB[..., None].expand(shape)
    )
    logit2_NRA, tape2 = stage2.forward(x2.flatten(1, 2))
    logit2_NBJA = logit2_NRA.unflatten(1, (requests, choices))
    if inputs.allowed_NMJ is not None and inputs.allowed_NJA is not None:
        logit1_NBJ = masked(logit1_NBJ, inputs.allowed_NMJ[batch.sample_NB, batch.budget_NB])
        logit2_NBJA = masked(logit2_NBJA, inputs.allowed_NJA[batch.sample_NB])
    log_prob1_NBJ = torch.log_softmax(logit1_NBJ, dim=-1)
    log_prob2_NBJA = torch.log_softmax(logit2_NBJA, dim=-1)
    prob1_NBJ, prob2_NBJA = log_prob1_NBJ.exp(), log_prob2_NBJA.exp()
    reward_NBJA = inputs.reward_NMJA[batch.sample_NB, batch.budget_NB]
    up1_NBJ, up2_NBJA = expected_reward_gradients(prob1_NBJ, prob2_NBJA, reward_NBJA)
    entropy_N = torch.zeros(seeds, device=reward_NBJA.device)
    if entropy_bonus:
        entropy1_NB, slope1_NBJ = entropy_and_gradient(log_prob1_NBJ)
        entropy2_NBJ, slope2_NBJA = entropy_and_gradient(log_prob2_NBJA)
        up1_NBJ += slope1_NBJ * (entropy_bonus / requests)
        up2_NBJA += slope2_NBJA * prob1_NBJ[..., None] * (entropy_bonus / requests)
        entropy_N = (entropy1_NB + (prob1_NBJ * entropy2_NBJ).sum(dim=-1)).mean(dim=-1)
    stage1.backward(-up1_NBJ, tape1)
    stage2.backward(-up2_NBJA.flatten(1, 2), tape2)
    value_NB = (prob1_NBJ * (prob2_NBJA * reward_NBJA).sum(dim=-1)).sum(dim=-1)
    return StepResult(value_NB[..., None], entropy_N)


def _gather_reward(inputs: ReplayInputs, sample: Tensor, budget: Tensor, choice1: Tensor, choice2: Tensor) -> Tensor:
    _, budgets, choices, computes = inputs.reward_NMJA.shape
    flat = ((sample * budgets + budget) * choices + choice1) * computes + choice2
    return inputs.reward_NMJA.view(-1)[flat]


@torch.no_grad()
def greedy_choices(
    stage1: StackedMlp, stage2: StackedMlp, inputs: ReplayInputs, rows: int = 8192
) -> tuple[Tensor, Tensor]:
    """Returns each seed's most likely choices for every sample and budget, and what they earn, [N, samples, M] each.

    A choice is j * A + a, the pair of Stage1 and that of Stage2 in one number.
    """
    seeds, budgets = len(stage1.flat), inputs.budgets
    total = len(inputs) * budgets
    parts = []
    for start in range(0, total, rows):
        request = torch.arange(start, min(start + rows, total), device=inputs.language_NF.device).expand(seeds, -1)
        batch = Batch(request // budgets, request % budgets)
        logit1, _ = stage1.forward(stage1_features(inputs, batch))
        if inputs.allowed_NMJ is not None:
            logit1 = masked(logit1, inputs.allowed_NMJ[batch.sample_NB, batch.budget_NB])
        choice1 = logit1.argmax(dim=-1)
        logit2, _ = stage2.forward(stage2_features(inputs, batch.sample_NB, choice1, batch.budget_NB))
        if inputs.allowed_NJA is not None:
            logit2 = masked(logit2, inputs.allowed_NJA[batch.sample_NB, choice1])
        choice2 = logit2.argmax(dim=-1)
        reward = _gather_reward(inputs, batch.sample_NB, batch.budget_NB, choice1, choice2)
        parts.append((choice1 * logit2.shape[-1] + choice2, reward))
    shape = (seeds, len(inputs), budgets)
    return torch.cat([part[0] for part in parts], dim=1).view(shape), torch.cat([p[1] for p in parts], dim=1).view(
        shape
    )
