"""Knob values, settings and block plans."""

from __future__ import annotations

import numpy as np
import pytest

from knobctl.data.errors import ImportanceError, UnknownSetting
from knobctl.data.knobs import KnobSetting, KnobSpace
from knobctl.data.plans import ImportanceScores, block_plan


def test_default_space_has_375_settings():
    space = KnobSpace()
    assert len(space.settings) == 3 * 5 * 5 * 5
    assert [space.index(setting) for setting in space.settings] == list(range(375))
    assert space.mean_tier_sizes == (2.0, 6.0, 12.0)


def test_value_indices_and_choices_map_to_the_settings_they_come_from():
    space = KnobSpace(("low", "medium", "high"), (1, 13), (4, 8), (12, 16))  # p13 with n12 cannot run
    for index, setting in enumerate(space.settings):
        t, p, k, n = space.value_index_KX[:, index]
        assert space.setting_TPKN[t, p, k, n] == index
        assert space.setting_JA[t * 2 + p, k * 2 + n] == index  # tier-major, top-k-major
        assert space.stage1_choice_X[index] == t * 2 + p
        assert (space.tiers[t], space.insertion_positions[p]) == (setting.tier, setting.insertion_position)
        assert (space.top_k[k], space.num_blocks[n]) == (setting.top_k, setting.num_blocks)
    assert space.setting_JA.shape == (space.num_stage1_choices, space.num_stage2_choices) == (6, 4)
    assert (space.setting_JA < 0).sum() == 6 * 4 - len(space.settings)
    one = np.array([0])
    with pytest.raises(UnknownSetting, match="low/p13/k4/n12, which cannot run"):
        space.setting_index(one, one + 1, one, one)


def test_values_by_choice_are_filled_where_no_setting_can_run():
    space = KnobSpace(("low",), (1, 13), (8,), (12, 16))  # settings: p1/n12, p1/n16, p13/n16
    value_BX = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    expected = [[[1.0, 2.0], [-1.0, 3.0]], [[4.0, 5.0], [-1.0, 6.0]]]
    np.testing.assert_array_equal(space.by_choice(value_BX, -1.0), expected)


@pytest.mark.parametrize(
    "setting",
    [
        KnobSetting("huge", 1, 8, 16),
        KnobSetting("low", 6, 8, 16),
        KnobSetting("low", 1, 3, 16),
        KnobSetting("low", 1, 8, 11),
    ],
)
def test_a_setting_outside_the_space_is_an_error(setting: KnobSetting):
    with pytest.raises(UnknownSetting, match="not in the knob space"):
        KnobSpace().index(setting)


def test_settings_have_at_least_as_many_blocks_as_the_insertion_position():
    space = KnobSpace(("low",), (1, 3), (2,), (2, 4))
    assert KnobSetting("low", 3, 2, 2) not in space
    assert len(space.settings) == 3


@pytest.mark.parametrize("space", [KnobSpace(), KnobSpace(("a", "b"), (None,), (1, 16), (3,)), KnobSpace(("low",))])
def test_a_space_survives_a_round_trip(space: KnobSpace):
    assert KnobSpace.from_dict(space.to_dict()) == space


def test_options_make_a_space():
    space = KnobSpace.from_options(tiers="low, wide=2-6", top_k="8")
    assert (space.tiers, space.tier_crops, space.top_k) == (("low", "wide"), ((1, 3), (2, 6)), (8,))
    assert space.num_blocks == KnobSpace().num_blocks


@pytest.mark.parametrize("tiers", ["huge", "wide=6", "wide=6-2", "low,low"])
def test_an_invalid_tier_is_refused(tiers: str):
    with pytest.raises(UnknownSetting):
        KnobSpace.from_options(tiers=tiers)


def test_the_plan_keeps_the_first_blocks_and_then_the_most_important():
    scores = ImportanceScores((0.0, 0.0, 0.3, 0.1, 0.1, 0.2))
    # After block 0 and 1, two more run: block 2 (0.3) and 5 (0.2); blocks 3 and 4 are left out.
    assert block_plan(2, 4, 4, importance=scores, native_top_k=(8,) * 6) == (8, 8, 4, 0, 0, 4)
    # Of the equal scores 0.1, the earlier block runs.
    assert block_plan(2, 4, 5, importance=scores, native_top_k=(8,) * 6) == (8, 8, 4, 4, 0, 4)
    assert block_plan(5, 4, 6, importance=scores, native_top_k=(8,) * 6) == (8, 8, 8, 8, 8, 4)


def test_blocks_that_always_run_come_before_more_important_ones():
    scores = ImportanceScores((0.0, 0.0, 0.3, 0.1, 0.1, 0.2))
    options = {"importance": scores, "native_top_k": (None, 8, 8, 8, 6, 8), "always_run": {0, 4}}
    assert block_plan(1, 4, 3, **options) == (1, 0, 4, 0, 4, 0)  # a block without a router has the entry 1
    assert block_plan(5, 4, 5, **options) == (1, 8, 8, 8, 6, 0)  # before the position every block has its own top-k
    with pytest.raises(UnknownSetting, match=r"num_blocks 2 must be between .* plus the blocks \[4\]"):
        block_plan(2, 4, 2, **options)


def test_unscored_first_and_last_blocks_are_always_kept():
    scores = ImportanceScores((None, 0.9, 0.8, None))
    assert block_plan(1, 2, 2, importance=scores, native_top_k=(4,) * 4) == (4, 0, 0, 2)


@pytest.mark.parametrize("scores", [(0.1, None, 0.2), (0.1, float("nan"), 0.2), ()])
def test_incomplete_scores_are_refused(scores: tuple[float | None, ...]):
    with pytest.raises(ImportanceError):
        ImportanceScores(scores)


def test_a_plan_with_more_blocks_than_the_model_has_is_refused():
    with pytest.raises(UnknownSetting):
        block_plan(1, 4, 5, importance=ImportanceScores((0.1,) * 4), native_top_k=(8,) * 4)


VISION_SPACE = KnobSpace(("low", "high"), (3, 6), (4, 8), (36, 48), tier_vision_tokens=((64, 256), (257, 1024)))


def test_tiers_of_visual_tokens_are_recorded_with_their_unit():
    record = VISION_SPACE.to_dict()
    assert record["tier_unit"] == "vision_tokens"
    assert record["tier_vision_tokens"] == [[64, 256], [257, 1024]]
    assert "tier_crops" not in record
    assert KnobSpace.from_dict(record) == VISION_SPACE
    assert VISION_SPACE.mean_tier_sizes == (160.0, 640.5)


def test_the_record_of_tiers_of_crops_has_no_unit():
    record = KnobSpace().to_dict()
    assert record["tier_crops"] == [[1, 3], [4, 8], [9, 15]]
    assert set(record) == {"tiers", "insertion_positions", "top_k", "num_blocks", "tier_crops"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tier_unit": "pixels"}, "must be crops or vision_tokens, not 'pixels'"),
        ({"tier_vision_tokens": [[64, 256]]}, "2 tiers, but tier_vision_tokens has 1 ranges"),
        ({"tier_vision_tokens": [[64, 256], [9, 8]]}, "a range in tier_vision_tokens is empty"),
    ],
)
def test_a_wrong_record_of_visual_tokens_is_refused(change, message):
    with pytest.raises(UnknownSetting, match=message):
        KnobSpace.from_dict(VISION_SPACE.to_dict() | change)


def test_tier_options_count_what_the_model_counts():
    space = KnobSpace.from_options("low,full=1025-4096", "", "2,8", "", default=VISION_SPACE)
    assert space.tier_vision_tokens == ((64, 256), (1025, 4096))
    assert (space.tier_crops, space.tiers) == (None, ("low", "full"))
    assert (space.insertion_positions, space.top_k, space.num_blocks) == ((3, 6), (2, 8), (36, 48))
    assert KnobSpace.from_options(default=VISION_SPACE) == VISION_SPACE
    with pytest.raises(UnknownSetting, match="use low, high, or NAME=MIN-MAX visual tokens for your own"):
        KnobSpace.from_options("medium", default=VISION_SPACE)
