"""Loads trained controllers as a policy. The one place where evaluation touches their checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ...controllers.checkpoint import Controllers
from ...data.cache import Cache
from ...data.policy import Policy
from ..reward import RewardWeights


@dataclass(frozen=True)
class LoadedControllers:
    """Controllers that fit the cache, as a policy, and what their checkpoint says of their training."""

    policy: Policy
    path: str
    training: dict[str, Any]

    @property
    def weights(self) -> RewardWeights | None:
        """The reward's weights that they were trained with; None where the checkpoint does not say."""
        recorded = self.training.get("reward_weights")
        if not isinstance(recorded, dict):
            return None
        known = {field.name for field in fields(RewardWeights)}
        return RewardWeights(**{name: float(value) for name, value in recorded.items() if name in known})

    def describe(self) -> dict[str, Any]:
        return {"path": self.path, **self.training}


def load_controllers(path: str | Path, cache: Cache, *, name: str, device: str) -> LoadedControllers:
    """Raises CheckpointError for files that cannot be read, CacheMismatch where they do not fit the cache."""
    controllers = Controllers.from_pretrained(path, device=device)
    controllers.check_fits(cache)
    return LoadedControllers(controllers.policy(name), str(path), controllers.training)
