"""The controllers of N seeds on the features of one split: log-probabilities, draws and greedy choices.

Shapes: N seeds, B requests (a sample under a budget), G draws in a group, J choices of Stage1, A of Stage2, C choices
of Stage1 that Stage2 is evaluated after.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...controllers.mlp import log_probs
from .grpo import sample_choices
from .inputs import ReplayInputs
from .stacked_mlp import StackedMlp


@dataclass(frozen=True)
class Batch:
    """The requests of a step: indices of samples and of budgets, [N, B] each."""

    sample_NB: Tensor
    budget_NB: Tensor


@dataclass(frozen=True)
class Draws:
    """Joint draws of both stages [N, B, G], and the log-probabilities of all choices."""

    choice1_NBG: Tensor
    choice2_NBG: Tensor
    log_prob1_NBJ: Tensor
    log_prob2_NBGA: Tensor

    @property
    def log_prob_NBG(self) -> Tensor:
        """The joint log-probability of each draw."""
        log_prob1_NBG = self.log_prob1_NBJ.gather(-1, self.choice1_NBG)
        return log_prob1_NBG + self.log_prob2_NBGA.gather(-1, self.choice2_NBG[..., None])[..., 0]


@dataclass(frozen=True)
class StackedPolicy:
    """Both stages of every seed. Differentiating a loss on its results writes the gradients to the stages' `grad`."""

    stage1: StackedMlp
    stage2: StackedMlp

    def log_probs1(self, inputs: ReplayInputs, batch: Batch) -> Tensor:
        """Returns Stage1's log-probabilities, [N, B, J]."""
        feature = torch.cat([inputs.language_NF[batch.sample_NB], inputs.budget_MF[batch.budget_NB]], dim=-1)
        allowed = None if inputs.allowed_NMJ is None else inputs.allowed_NMJ[batch.sample_NB, batch.budget_NB]
        return log_probs(self.stage1, feature, allowed)

    def log_probs2(self, inputs: ReplayInputs, batch: Batch, choice1_NBC: Tensor) -> Tensor:
        """Returns Stage2's log-probabilities after these choices of Stage1, [N, B, C, A]."""
        choices, budgets, features = inputs.token_NJMF.shape[1:]
        row_NBC = (batch.sample_NB[..., None] * choices + choice1_NBC) * budgets + batch.budget_NB[..., None]
        token = inputs.token_NJMF.view(-1, features).index_select(0, row_NBC.flatten())
        place = inputs.place_JH.index_select(0, choice1_NBC.flatten())
        feature = torch.cat([token, place], dim=-1).view(len(choice1_NBC), -1, features + place.shape[-1])
        allowed = None
        if inputs.allowed_NJA is not None:
            allowed = inputs.allowed_NJA[batch.sample_NB[..., None], choice1_NBC].flatten(1, 2)
        return log_probs(self.stage2, feature, allowed).unflatten(1, choice1_NBC.shape[1:])

    def draw(self, inputs: ReplayInputs, batch: Batch, uniform_NBG2: Tensor) -> Draws:
        """Returns joint draws by inverse CDF, from uniforms in [0, 1)."""
        log_prob1 = self.log_probs1(inputs, batch)
        choice1 = sample_choices(log_prob1.detach(), uniform_NBG2[..., 0].contiguous())
        log_prob2 = self.log_probs2(inputs, batch, choice1)
        choice2 = sample_choices(log_prob2.detach(), uniform_NBG2[..., 1, None].contiguous())[..., 0]
        return Draws(choice1, choice2, log_prob1, log_prob2)

    def of_draws(self, inputs: ReplayInputs, batch: Batch, draws: Draws) -> Draws:
        """Returns the same draws with their log-probabilities under this policy."""
        log_prob1 = self.log_probs1(inputs, batch)
        log_prob2 = self.log_probs2(inputs, batch, draws.choice1_NBG)
        return Draws(draws.choice1_NBG, draws.choice2_NBG, log_prob1, log_prob2)

    def of_all(self, inputs: ReplayInputs, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns the log-probabilities of every choice, [N, B, J] and [N, B, J, A]."""
        choices = inputs.token_NJMF.shape[1]
        every = torch.arange(choices, device=batch.sample_NB.device).expand(*batch.sample_NB.shape, choices)
        return self.log_probs1(inputs, batch), self.log_probs2(inputs, batch, every)

    @torch.no_grad()
    def greedy(self, inputs: ReplayInputs, rows: int = 8192) -> tuple[Tensor, Tensor]:
        """Returns the most likely choices of each seed for every sample and budget, and their rewards.

        Both are [N, samples, M]; a choice is j * A + a for choice j of Stage1 and a of Stage2.
        """
        seeds, budgets = len(self.stage1.flat), inputs.budgets
        total = len(inputs) * budgets
        choices, rewards = [], []
        for start in range(0, total, rows):
            request = torch.arange(start, min(start + rows, total), device=inputs.language_NF.device).expand(seeds, -1)
            batch = Batch(request // budgets, request % budgets)
            choice1 = self.log_probs1(inputs, batch).argmax(dim=-1, keepdim=True)
            log_prob2 = self.log_probs2(inputs, batch, choice1)
            choice2 = log_prob2.argmax(dim=-1)
            choices.append((choice1 * log_prob2.shape[-1] + choice2)[..., 0])
            rewards.append(gather_reward(inputs, batch, choice1, choice2)[..., 0])
        shape = (seeds, len(inputs), budgets)
        return torch.cat(choices, dim=1).view(shape), torch.cat(rewards, dim=1).view(shape)


def gather_reward(inputs: ReplayInputs, batch: Batch, choice1_NBC: Tensor, choice2_NBC: Tensor) -> Tensor:
    """Returns the reward of these choices, [N, B, C]."""
    _, budgets, choices1, choices2 = inputs.reward_NMJA.shape
    request_NB1 = (batch.sample_NB * budgets + batch.budget_NB)[..., None]
    return inputs.reward_NMJA.view(-1)[(request_NB1 * choices1 + choice1_NBC) * choices2 + choice2_NBC]
