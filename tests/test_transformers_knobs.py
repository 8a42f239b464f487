"""Default knobs of models of transformers."""

from __future__ import annotations

import pytest

from knobctl.precompute.models.backbone import Geometry
from knobctl.precompute.models.transformers_moe.default_knobs import default_knobs
from knobctl.precompute.models.transformers_moe.token_limits import PixelBounds, Steps


def geometry(blocks: int, top_k: int | tuple[int | None, ...], *, positions: int = 262144, always=()) -> Geometry:
    native = (top_k,) * blocks if isinstance(top_k, int) else top_k
    return Geometry("m", "f", "0", 32, native, 128, positions, "vision_tokens", frozenset(always))


QWEN3_VL = PixelBounds(pixels_per_token=1024, least=64, most=16384)


def test_the_defaults_of_48_blocks_and_8_experts():
    space = default_knobs(geometry(48, 8), QWEN3_VL)
    assert space.num_blocks == (36, 39, 42, 45, 48)
    assert space.top_k == (2, 3, 4, 6, 8)
    assert space.insertion_positions == (3, 6, 9, 12, 15)
    assert dict(zip(space.tiers, space.tier_vision_tokens, strict=True)) == {
        "low": (64, 256),
        "medium": (256, 1024),
        "high": (1024, 4096),
    }
    assert len(space.settings) == 375


@pytest.mark.parametrize(
    ("blocks", "native", "expected_top_k"), [(30, 8, 5), (12, 6, 4), (5, 4, 4), (3, 2, 2), (2, 1, 1), (46, 10, 5)]
)
def test_every_default_setting_can_run(blocks, native, expected_top_k):
    space = default_knobs(geometry(blocks, native, always=(0, blocks - 1)), QWEN3_VL)
    assert len(space.top_k) == expected_top_k
    assert max(space.top_k) == native
    assert max(space.num_blocks) == blocks
    assert len(space.settings) == 3 * len(space.insertion_positions) * len(space.top_k) * len(space.num_blocks) <= 375


def test_blocks_that_always_run_are_counted():
    always = (0, *range(5, 15))  # ten blocks after the last insertion position
    space = default_knobs(geometry(16, 4, always=always), QWEN3_VL)
    assert space.num_blocks == (15, 16)


def test_the_least_native_top_k_limits_the_knob():
    assert max(default_knobs(geometry(3, (None, 8, 4)), QWEN3_VL).top_k) == 4


def test_a_short_context_limits_the_tiers():
    assert default_knobs(geometry(16, 8, positions=2048), QWEN3_VL).tier_vision_tokens[-1][1] == 1024


def test_a_processor_with_one_setting_has_one_tier():
    space = default_knobs(geometry(16, 8), Steps(((),), (576,), 576))
    assert (space.tiers, space.tier_vision_tokens) == (("high",), ((1, 576),))
