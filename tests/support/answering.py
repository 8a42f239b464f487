"""Controllers with random weights that can answer questions, for tests of the engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from knobctl.controllers.budget_encoder import read_budget_encoder
from knobctl.controllers.checkpoint import Controllers
from knobctl.controllers.conditions import Conditions, ModelIdentity
from knobctl.controllers.expected_latency import ExpectedLatency
from knobctl.controllers.service_levels import Calibration, ServiceLevel
from knobctl.data.cache.reader import Cache
from knobctl.precompute.execution.knob_model import KnobModel

from .random_controllers import with_random_weights


def answering_controllers(cache: Cache, path: Path, *, expected_ms: float = 20.0, seed: int = 0) -> Controllers:
    """Saves controllers that fit the cache and its model, and returns them as read."""
    manifest = cache.manifest
    assert cache.budget_encoder_path is not None
    encoder = read_budget_encoder(cache.budget_encoder_path, cache.d_model)
    made = with_random_weights(cache.space, ModelIdentity.of(manifest), tuple(manifest.budgets_ms), encoder, seed=seed)
    made.conditions = Conditions.of(manifest, manifest.datasets or {})
    return _answering(made, path, expected_ms)


def controllers_of_model(knobs: KnobModel, path: Path, *, expected_ms: float = 20.0, seed: int = 0) -> Controllers:
    """Saves controllers that fit the model, and returns them as read."""
    geometry = knobs.model.geometry
    identity = ModelIdentity(
        knobs.loaded.name, geometry.d_model, geometry.n_blocks, geometry.largest_top_k, geometry.fingerprint
    )
    made = with_random_weights(knobs.space, identity, knobs.budgets_ms, knobs.encoder, seed=seed)
    made.conditions = Conditions(knobs.importance, None, knobs.tasks)
    return _answering(made, path, expected_ms)


def _answering(made: Controllers, path: Path, expected_ms: float) -> Controllers:
    """Adds made-up expected latencies, longer for settings with more blocks, and one service level."""
    expected = made.expected_latency = ExpectedLatency(made.space, list(made.conditions.tasks))
    size_X = np.array([setting.num_blocks + setting.top_k / 10 for setting in made.space.settings])
    for tensor, values in (
        (expected.offset_ms_GX, expected_ms * size_X / size_X.min()),
        (expected.vision_ms_X, np.full(len(size_X), 0.01)),
        (expected.text_ms_X, np.full(len(size_X), 0.01)),
        (expected.least_ms_X, np.full(len(size_X), 0.1)),
    ):
        tensor[:] = tensor.new_tensor(values)
    expected.known_X[:] = True
    made.calibration = Calibration(0.2, (ServiceLevel(0.9, 0.8, 100, 99),))
    made.save_pretrained(path)
    return Controllers.from_pretrained(path)
