"""The warm-up's requests are as large as those of the dataset: otherwise expected latencies would seem wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from knobctl.controllers.expected_latency import TypicalRequest
from knobctl.data.cache.reader import Cache
from knobctl.serving.engine import Engine
from knobctl.serving.warm_up import SET_UP_REQUESTS, enlarged
from knobctl.tests.support.answering import answering_controllers

COUNT = 4


@pytest.mark.parametrize(("wanted", "factor"), [(1, 1), (64, 1), (100, 1), (250, 2), (1024, 4), (1e9, 32)])
def test_an_image_is_enlarged_to_about_as_many_visual_tokens(wanted: float, factor: int):
    rgb = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    large = enlarged(rgb, lambda height, width: 64 * (height // 2) * (width // 3), wanted)
    assert large.shape == (2 * factor, 3 * factor, 3)
    np.testing.assert_array_equal(large[::factor, ::factor], rgb)


@pytest.mark.parametrize(("output_tokens", "tokens"), [(None, None), (0.2, 1), (2.4, 2), (99.0, 3)])
def test_requests_of_the_warm_up_are_typical_of_the_dataset(
    tiny_cache: Cache, tmp_path: Path, monkeypatch, output_tokens: float | None, tokens: int | None
):
    """Answers have at most the 3 tokens of the task."""
    controllers = answering_controllers(tiny_cache, tmp_path / "controllers")
    assert controllers.expected_latency is not None
    if output_tokens is not None:
        controllers.expected_latency.typical = {"easy_vqa": TypicalRequest(123.0, output_tokens)}
    run, seen = Engine._run, []

    def doubled(rgb: np.ndarray, vision_tokens: Callable[[int, int], int], wanted: float) -> np.ndarray:
        assert (vision_tokens(64, 64) > 0, wanted) == (True, 123.0)
        return rgb.repeat(2, axis=0).repeat(2, axis=1)

    def spied(self: Engine, request: Any, ends: bool, on_token: Any) -> Any:
        made = run(self, request, ends, on_token)
        seen.append((request.rgb.shape[0], ends, made.answer.output_tokens))
        return made

    monkeypatch.setattr("knobctl.serving.engine.enlarged", doubled)
    monkeypatch.setattr(Engine, "_run", spied)
    Engine(controllers, device="cpu", warm_up=COUNT)
    assert len(seen) == COUNT + SET_UP_REQUESTS
    if tokens is None:
        assert {(height, ends) for height, ends, _ in seen} == {(64, True)}
    else:
        assert set(seen) == {(128, False, tokens)}
