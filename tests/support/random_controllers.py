"""Controllers with random weights, for tests of what reads controllers without training them."""

from __future__ import annotations

from pathlib import Path

import torch

from knobctl.controllers.budget_encoder import BudgetEncoder
from knobctl.controllers.checkpoint import Controllers
from knobctl.controllers.conditions import ModelIdentity
from knobctl.data.cache.reader import Cache
from knobctl.data.knobs import KnobSpace


def random_controllers(cache: Cache, path: Path, *, seed: int = 0, settings: dict | None = None) -> Path:
    """Saves controllers that fit the cache and choose differently for every request; returns their path."""
    encoder = BudgetEncoder.from_seed(cache.d_model, 0)
    manifest = cache.manifest
    budgets_ms = tuple(manifest.budgets_ms)
    made = with_random_weights(cache.space, ModelIdentity.of(manifest), budgets_ms, encoder, seed=seed)
    made.settings = settings or {}
    made.save_pretrained(path)
    return path


def with_random_weights(
    space: KnobSpace, identity: ModelIdentity, budgets_ms: tuple[float, ...], encoder: BudgetEncoder, *, seed: int
) -> Controllers:
    """Returns controllers that choose differently for every request."""
    made = Controllers.untrained(space, identity, budgets_ms, encoder)
    generator = torch.Generator().manual_seed(seed)
    for stage in (made.stage1, made.stage2):
        # Only the linear part: hundreds of random waves would hide the influence of the request.
        smooth = ("smooth", "direction", "centre", "wave", "phase")
        linear = [
            buffer
            for name, buffer in stage.named_buffers()
            if buffer.is_floating_point() and not any(part in name for part in smooth)
        ]
        for tensor in (*stage.parameters(), *linear):
            tensor.data.normal_(0.0, 0.5, generator=generator)
    return made
