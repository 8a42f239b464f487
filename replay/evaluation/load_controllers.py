"""Loads trained controllers as a policy. The one place where evaluation touches their checkpoint."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ...controllers.checkpoint import Controllers, ModelIdentity, read_budget_encoder
from ...controllers.two_stage import TwoStagePolicy
from ...data.cache import Cache
from ...data.errors import CheckpointError
from ...data.protocols import Policy
from ..reward import RewardWeights


@dataclass(frozen=True)
class LoadedControllers:
    """Controllers that fit the cache, as a policy, and what their checkpoint says of their training."""

    policy: Policy
    path: str
    controllers: Controllers

    @property
    def weights(self) -> RewardWeights | None:
        """The reward's weights that they were trained with; None where the checkpoint does not say."""
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

    def warnings(self, cache: Cache) -> list[str]:
        """Says when nothing tells that the cache's held-out samples were held out in training too."""
        trained_on = self.controllers.cache_fingerprint
        if trained_on is None or trained_on == cache.fingerprint:
            return []
        return [
            f"{self.path} was trained on another cache (fingerprint {trained_on[:12]}): whether it has seen samples of "
            "this one's held-out split cannot be checked"
        ]

    def describe(self) -> dict[str, Any]:
        """What the report says of them: where they lie, how large they are, how they were trained."""
        return {
            "path": self.path,
            "trained_on_cache": self.controllers.cache_fingerprint,
            "parameters": self.controllers.parameter_counts(),
            "settings": self.controllers.settings,
        }


def load_controllers(path: str | Path, cache: Cache, *, name: str) -> LoadedControllers:
    """Raises CheckpointError for files that cannot be read, CacheMismatch where they do not fit the cache."""
    controllers = Controllers.from_pretrained(path)
    manifest, encoder_path = cache.manifest, cache.budget_encoder_path
    controllers.check_fits(
        f"cache {cache.path}",
        space=cache.space,
        model=ModelIdentity(
            manifest.model_name, cache.d_model, manifest.n_blocks, manifest.native_top_k, manifest.fingerprint
        ),
        encoder=None if encoder_path is None else read_budget_encoder(encoder_path, cache.d_model),
    )
    found = str(Path(path).absolute()) if Path(path).is_dir() else str(path)  # else a hub id
    return LoadedControllers(TwoStagePolicy(controllers, name), found, controllers)
