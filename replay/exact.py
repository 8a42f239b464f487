"""The oracle's reward."""

from __future__ import annotations

import torch
from torch import Tensor


def best_reward(reward_BJA: Tensor, allowed_BJA: Tensor) -> Tensor:
    """Returns the oracle's reward, [B]: the best setting that each request has."""
    return reward_BJA.masked_fill(~allowed_BJA, -torch.inf).flatten(-2).amax(dim=-1)
