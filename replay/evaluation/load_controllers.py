"""Loads trained controllers from a checkpoint, as a policy."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ...controllers.budget_encoder import read_budget_encoder
from ...controllers.checkpoint import Controllers
from ...controllers.conditions import ModelIdentity
from ...controllers.two_stage import TwoStagePolicy
from ...data.cache.reader import Cache
from ...data.errors import CheckpointError
from ...data.protocols import Policy
from ..reward import RewardWeights


@dataclass(frozen=True)
class LoadedControllers:
    """Controllers that fit the cache, as a policy, with what their checkpoint records about their training."""

    policy: Policy
    path: str
    controllers: Controllers

    def within(self, level: float) -> Policy:
        """Returns the controllers under a service level. Raises CheckpointError if it cannot be promised."""
        name = f"{self.policy.name} within {level:g}"
        return TwoStagePolicy(self.controllers, name, budget_factor=self.controllers.budget_factor(level))

    @property
    def weights(self) -> RewardWeights | None:
        """The reward weights of their training; None if the checkpoint does not record them.

        Raises CheckpointError if the recorded ones are not finite numbers, one for each weight.
        """
        recorded = self.controllers.settings.get("reward_weights")
        if recorded is None:
            return None
        names = {field.name for field in fields(RewardWeights)}
        if not isinstance(recorded, dict) or set(recorded) != names:
            raise CheckpointError(
                f"{self.path}: settings.reward_weights must give the weights {sorted(names)}, not {recorded!r}"
            )
        for name, value in recorded.items():
            if type(value) not in (int, float) or not math.isfinite(value):
                raise CheckpointError(
                    f"{self.path}: settings.reward_weights.{name} must be a finite number, not {value!r}"
                )
        return RewardWeights(**recorded)

    @property
    def trained_on(self) -> str | None:
        """The fingerprint of the cache they were trained on; None if the checkpoint does not record it."""
        return self.controllers.cache_fingerprint

    def describe(self) -> dict[str, Any]:
        """Returns the report's description of them: path, size, training settings."""
        return {
            "path": self.path,
            "trained_on_cache": self.trained_on,
            "parameters": self.controllers.parameter_counts(),
            "settings": self.controllers.settings,
            "calibration": calibration.to_dict() if (calibration := self.controllers.calibration) else None,
        }


def load_controllers(path: str | Path, cache: Cache, *, name: str) -> LoadedControllers:
    """Raises CheckpointError for files that cannot be read, CacheMismatch if the controllers do not fit the cache."""
    controllers = Controllers.from_pretrained(path)
    encoder_path = cache.budget_encoder_path
    controllers.check_fits(
        f"cache {cache.path}",
        space=cache.space,
        model=ModelIdentity.of(cache.manifest),
        encoder=None if encoder_path is None else read_budget_encoder(encoder_path, cache.d_model),
    )
    found = str(Path(path).absolute()) if Path(path).is_dir() else str(controllers.source)  # on the hub
    return LoadedControllers(TwoStagePolicy(controllers, name), found, controllers)
