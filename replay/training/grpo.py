"""GRPO (Shao et al., 2024, "DeepSeekMath") as pure functions: advantages, clipped loss, KL, entropy.

Independent of knobs. Shapes: any leading dimensions `...` (seeds, groups); G draws in a group, C choices of a head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..recipes import SCALE_REWARDS

STD_FLOOR = 1e-4  # added to a standard deviation before dividing by it, as in other GRPO trainers


def group_advantages(
    reward_BG: Tensor, scale_rewards: str = "none", clip: float | None = None, floor: float = STD_FLOOR
) -> Tensor:
    """Returns each draw's reward minus its group's mean, [..., B, G], clipped to +-clip.

    `scale_rewards` divides the differences by the standard deviation of the "group", of the "batch" (B and G together),
    or not at all ("none"). A group whose rewards all tie gets zeros.
    """
    advantage_BG = reward_BG - reward_BG.mean(dim=-1, keepdim=True)
    if scale_rewards == "group":
        advantage_BG = advantage_BG / (
            reward_BG.std(dim=-1, keepdim=True, correction=_correction(reward_BG, 1)) + floor
        )
    elif scale_rewards == "batch":
        correction = _correction(reward_BG, 2)
        advantage_BG = advantage_BG / (reward_BG.std(dim=(-2, -1), keepdim=True, correction=correction) + floor)
    elif scale_rewards != "none":
        raise ValueError(f"scale_rewards is one of {SCALE_REWARDS}, not {scale_rewards!r}")
    return advantage_BG if clip is None else advantage_BG.clamp(-clip, clip)


def _correction(reward_BG: Tensor, dims: int) -> int:
    """Returns 0 for a single draw, whose corrected standard deviation is undefined."""
    return 1 if math.prod(reward_BG.shape[-dims:]) > 1 else 0


def entropy(log_prob_C: Tensor) -> Tensor:
    """Returns the entropy in nats over the last dimension; choices of probability 0 contribute 0."""
    finite_C = log_prob_C.clamp(min=-80.0)  # 0 * -80 is 0, whereas 0 * -inf is NaN; e^-80 is negligible
    return -(log_prob_C.exp() * finite_C).sum(dim=-1)


def clipped_loss(log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, epsilon: float) -> Tensor:
    """Returns PPO's clipped surrogate loss of each draw, in the shape of the inputs."""
    ratio = (log_prob - old_log_prob).exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(1.0 - epsilon, 1.0 + epsilon) * advantage)


def clip_ratio(log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, epsilon: float) -> Tensor:
    """Returns the share of draws [..., B, G] whose gradient is zero because of the clip, [...]."""
    ratio = (log_prob - old_log_prob).exp()
    clipped = ((ratio < 1.0 - epsilon) & (advantage < 0)) | ((ratio > 1.0 + epsilon) & (advantage > 0))
    return clipped.float().mean(dim=(-2, -1))


def kl_estimate(log_prob: Tensor, reference_log_prob: Tensor) -> Tensor:
    """Returns the unbiased, non-negative estimate r - log r - 1 of KL(policy || reference) per draw (Schulman's k3)."""
    log_ratio = reference_log_prob - log_prob
    return log_ratio.exp() - log_ratio - 1.0


def sample_choices(log_prob_C: Tensor, uniform_G: Tensor) -> Tensor:
    """Returns draws by inverse CDF, [..., G], from log-probabilities [..., C] and uniforms in [0, 1) [..., G].

    A choice of probability 0 is never drawn, even if rounding puts a uniform above the end of the CDF.
    """
    cdf_C = log_prob_C.exp().cumsum(dim=-1)
    scaled_G = uniform_G * cdf_C[..., -1:]  # rounding may leave the end of the CDF unequal to 1
    draw_G = torch.searchsorted(cdf_C, scaled_G, right=True)
    last_1 = torch.searchsorted(cdf_C, cdf_C[..., -1:].contiguous(), right=False)
    return torch.minimum(draw_G, last_1)
