"""The starting point of GRPO: a look-up table per dataset and budget, instead of uniformly random choices.

The networks are first fitted to the mean reward of every setting under every budget, on one average sample per dataset.
This takes about a second for a cache of any size. With a few hundred samples the table is most of what can be learned,
and per-sample gradient steps learn it slowly and only approximately; with thousands it does no harm. The dataset is not
an input of the controllers: they infer it from the features, in training as in deployment.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from .inputs import ReplayInputs
from .losses import exact_loss
from .policy import Batch, StackedPolicy

LR = 5e-3
WARMUP_STEPS = 20
PRIOR_SAMPLES = 25  # with this many samples, a dataset's mean rewards weigh as much as those of all samples


def known_rewards(inputs: ReplayInputs, exists_JA: Tensor) -> Tensor:
    """Returns for which choices of both stages each sample has a reward, [N, J, A]."""
    if inputs.allowed_NJA is None:
        return exists_JA.expand(len(inputs), -1, -1)
    known_NJA = inputs.allowed_NJA & exists_JA  # rows without known choices are unmasked: see replay_inputs
    return known_NJA if inputs.allowed_NMJ is None else known_NJA & inputs.allowed_NMJ.any(dim=1)[:, :, None]


def mean_reward(inputs: ReplayInputs, known_NJA: Tensor, budget: int) -> Tensor:
    """Returns the mean reward under one budget over the samples that have one, [J, A]; -inf where none has."""
    count_JA = known_NJA.sum(dim=0)
    total_JA = torch.where(known_NJA, inputs.reward_NMJA[:, budget], 0.0).sum(dim=0)
    return (total_JA / count_JA.clamp(min=1)).masked_fill(count_JA == 0, -math.inf)


def average_sample(inputs: ReplayInputs, exists_JA: Tensor) -> ReplayInputs:
    """Returns the inputs of one average sample; each feature and reward is the mean over the samples that have it."""
    known_NJA = known_rewards(inputs, exists_JA)
    reward_MJA = torch.stack([mean_reward(inputs, known_NJA, budget) for budget in range(inputs.budgets)])
    known_MJA = torch.isfinite(reward_MJA)
    known_JA = known_MJA[0]
    if inputs.allowed_NMJ is None:
        token_JMF = inputs.token_NJMF.mean(dim=0)
    else:
        weight_NJM = inputs.allowed_NMJ.transpose(1, 2).float()
        count_JM = weight_NJM.sum(dim=0).clamp(min=1)
        token_JMF = torch.einsum("njm,njmf->jmf", weight_NJM, inputs.token_NJMF) / count_JM[..., None]
    some_J = known_JA.any(dim=1)
    return replace(
        inputs,
        language_NF=inputs.language_NF.mean(dim=0, keepdim=True),
        token_NJMF=token_JMF[None].contiguous(),
        reward_NMJA=reward_MJA.masked_fill(~known_MJA, 0.0)[None],
        allowed_NMJ=some_J.expand(1, inputs.budgets, -1),
        allowed_NJA=(known_JA | ~some_J[:, None])[None],
        holes=0,
    )


def average_samples(inputs: ReplayInputs, exists_JA: Tensor, group_N: Tensor) -> ReplayInputs:
    """Returns one average sample per group of samples, its rewards shrunk towards the mean over all samples.

    The deviation of a group of n samples is multiplied by n / (n + PRIOR_SAMPLES), since that of few samples is noise.
    """
    everyone = average_sample(inputs, exists_JA)
    if not bool((group_N != group_N[0]).any()):
        return everyone
    parts = []
    for group in group_N.unique():
        rows = (group_N == group).nonzero()[:, 0]
        part = average_sample(rows_of(inputs, rows), exists_JA)
        kept = len(rows) / (len(rows) + PRIOR_SAMPLES)
        parts.append(replace(part, reward_NMJA=torch.lerp(everyone.reward_NMJA, part.reward_NMJA, kept)))
    return replace(
        everyone,
        language_NF=torch.cat([part.language_NF for part in parts]),
        token_NJMF=torch.cat([part.token_NJMF for part in parts]),
        reward_NMJA=torch.cat([part.reward_NMJA for part in parts]),
        allowed_NMJ=torch.cat([part.allowed_NMJ for part in parts if part.allowed_NMJ is not None]),
        allowed_NJA=torch.cat([part.allowed_NJA for part in parts if part.allowed_NJA is not None]),
    )


def rows_of(inputs: ReplayInputs, rows_N: Tensor) -> ReplayInputs:
    """Returns the inputs of some of the samples."""
    return replace(
        inputs,
        language_NF=inputs.language_NF[rows_N],
        token_NJMF=inputs.token_NJMF[rows_N],
        reward_NMJA=inputs.reward_NMJA[rows_N],
        allowed_NMJ=None if inputs.allowed_NMJ is None else inputs.allowed_NMJ[rows_N],
        allowed_NJA=None if inputs.allowed_NJA is None else inputs.allowed_NJA[rows_N],
    )


def learn_table(
    policy: StackedPolicy,
    optimizer: torch.optim.Optimizer,
    averages: ReplayInputs,
    *,
    steps: int,
    entropy_bonus: float,
) -> None:
    """Takes steps along the exact gradient on the average samples under all budgets; draws no random numbers."""
    seeds, device = len(policy.stage1.flat), policy.stage1.flat.device
    request_NB = torch.arange(len(averages) * averages.budgets, device=device).expand(seeds, -1)
    batch = Batch(request_NB // averages.budgets, request_NB % averages.budgets)
    for step in range(steps):
        lr = LR * min(1.0, (step + 1) / WARMUP_STEPS) * 0.5 * (1.0 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = lr
        exact_loss(policy, averages, batch, entropy_bonus=entropy_bonus)[0].backward()
        optimizer.step()
