"""Controllers that can answer questions with the tiny model, for tests of the engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from knobctl.controllers.budget_encoder import read_budget_encoder
from knobctl.controllers.checkpoint import Controllers
from knobctl.controllers.conditions import Conditions
from knobctl.controllers.expected_latency import ExpectedLatency
from knobctl.controllers.service_levels import Calibration, ServiceLevel
from knobctl.data.cache.reader import Cache

from .random_controllers import random_controllers


def answering_controllers(cache: Cache, path: Path, *, expected_ms: float = 20.0, seed: int = 0) -> Controllers:
    """Controllers with random weights and made-up expected latencies: settings with more blocks take longer."""
    controllers = Controllers.from_pretrained(random_controllers(cache, path, seed=seed))
    assert cache.budget_encoder_path is not None
    encoder = read_budget_encoder(cache.budget_encoder_path, cache.d_model)
    controllers.budget_encoder = controllers.stage1_budget_encoder = encoder
    datasets = sorted(cache.manifest.datasets or {})
    controllers.conditions = Conditions.of(cache.manifest, datasets)
    expected = ExpectedLatency(cache.space, datasets)
    size_X = np.array([setting.num_blocks + setting.top_k / 10 for setting in cache.space.settings])
    for tensor, values in (
        (expected.offset_ms_GX, expected_ms * size_X / size_X.min()),
        (expected.vision_ms_X, np.full(len(size_X), 0.01)),
        (expected.text_ms_X, np.full(len(size_X), 0.01)),
        (expected.least_ms_X, np.full(len(size_X), 0.1)),
    ):
        tensor[:] = tensor.new_tensor(values)
    expected.known_X[:] = True
    controllers.expected_latency = expected
    controllers.calibration = Calibration(0.2, (ServiceLevel(0.9, 0.8, 100, 99),))
    controllers.save_pretrained(path)
    return Controllers.from_pretrained(path)
