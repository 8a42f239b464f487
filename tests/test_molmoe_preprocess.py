"""Tilings, crops, masks, image tokens and indices equal the released processor's; tiers choose by aspect ratio."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from knobctl.precompute.models.molmoe.config import MolmoeConfig, VisionConfig
from knobctl.precompute.models.molmoe.preprocess import DROPPED_FEATURE, image_tokens, preprocess_image, scaled_size
from knobctl.precompute.models.molmoe.prompt import SpecialTokens
from knobctl.precompute.models.molmoe.tiling import choose_tiling
from knobctl.tests.support.molmoe_fixtures import FIXTURES, read_rgb

CONFIG = MolmoeConfig.from_json(FIXTURES / "config.MolmoE-1B-0924.json")
EXPECTED = json.loads((FIXTURES / "preprocess.json").read_text())
IDS = EXPECTED["token_ids"]
SPECIAL = SpecialTokens(
    IDS["bos"], IDS["eos"], IDS["pad"], IDS["im_start"], IDS["im_end"], IDS["im_patch"], IDS["im_col"]
)
TILINGS = json.loads((FIXTURES / "tilings.json").read_text())["rows"]


@pytest.fixture(scope="module")
def arrays():
    with np.load(FIXTURES / "preprocess.npz") as stored:
        return {name: stored[name] for name in stored.files}


def sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


@pytest.mark.parametrize("case", EXPECTED["cases"], ids=lambda case: f"{case['image']}-{case['max_crops']}")
def test_images_are_preprocessed_as_by_the_released_processor(case, arrays):
    rgb = read_rgb(case["image"])
    tiling = choose_tiling(*rgb.shape[:2], case["max_crops"], CONFIG)
    assert list(tiling) == case["tiling"]
    image = preprocess_image(rgb, tiling, CONFIG, SPECIAL)
    prefix = f"{case['file'].removesuffix('.npz')}.{case['prefix']}"
    assert list(image.crops.shape) == case["crops_shape"]
    np.testing.assert_allclose(image.crops[:, 5::23, 3::31], arrays[prefix + "crops_sample"], atol=1e-4, rtol=0)
    np.testing.assert_allclose(image.crops.mean((1, 2)), case["crops_stats"]["mean"], atol=1e-4, rtol=0)
    np.testing.assert_allclose(image.masks, arrays[prefix + "image_masks"], atol=1e-6, rtol=0)
    ids = [SPECIAL.begin, *image.token_ids.tolist(), *case["prompt_ids"]]
    assert ids == arrays[prefix + "input_ids"].ravel().tolist()
    assert sha256(np.array(ids, dtype="<i4")) == case["sha256"]["input_ids_i32"]
    assert sha256(image.image_input_idx.numpy().astype("<i4")) == case["sha256"]["image_input_idx_i32"]


@pytest.mark.parametrize("row", TILINGS, ids=lambda row: f"{row[0]}x{row[1]}-{row[2]}")
def test_tilings_are_those_of_the_released_processor(row):
    height, width, max_crops, tiling, tiled, whole = row
    found = choose_tiling(height, width, max_crops, CONFIG)
    assert list(found) == tiling
    canvas = (224 * found[0] + 112, 224 * found[1] + 112)
    for canvas_size, wanted in ((canvas, tiled), ((336, 336), whole)):
        if wanted is not None:
            size = scaled_size(height, width, canvas_size)
            top, left = ((canvas_size[axis] - size[axis]) // 2 for axis in (0, 1))
            assert [*size, top, left] == wanted


def test_a_side_of_less_than_one_pixel_gets_one_pixel():
    rgb = np.full((2000, 4, 3), 255, dtype=np.uint8)
    assert scaled_size(2000, 4, (336, 336)) == (336, 1)
    image = preprocess_image(rgb, (1, 1), CONFIG, SPECIAL)
    column = image.crops[0].view(24, 24, 14, 14, 3).permute(0, 2, 1, 3, 4).reshape(336, 336, 3)
    is_white = (column > 1).all(dim=-1)
    assert is_white.any(dim=0).sum() == 1
    assert is_white.all(dim=0).sum() == 1


# Worked out by hand from the rule: nearest log aspect ratio; then more crops; then fewer rows.
@pytest.mark.parametrize(
    ("height", "width", "tier", "tiling"),
    [
        (100, 100, (1, 3), (1, 1)),
        (100, 200, (1, 3), (1, 2)),
        (100, 170, (1, 3), (1, 2)),
        (900, 100, (1, 3), (3, 1)),
        (100, 100, (4, 8), (2, 2)),
        (480, 640, (4, 8), (2, 3)),  # ln 0.75 = -0.288: 2 x 2 is 0.288 away, 2 x 3 only 0.118
        (100, 200, (4, 8), (2, 4)),  # 2 x 4 is exact
        (100, 100, (9, 15), (3, 3)),
        (300, 400, (9, 15), (3, 4)),
        (200, 300, (9, 15), (3, 5)),  # ln(2/3) is 0.118 from 3 x 4 and 0.105 from 3 x 5
        (100, 100, (2, 2), (1, 2)),  # 1 x 2 and 2 x 1 are equally distant: fewer rows
        (1, 1, (5, 6), (2, 3)),  # 2 x 3 and 3 x 2 tie, and are nearer than 1 x 5
        (100, 300, (3, 12), (2, 6)),  # 1 x 3 and 2 x 6 are exact: more crops
    ],
)
def test_a_tier_gives_the_tiling_nearest_in_aspect_ratio(height, width, tier, tiling):
    assert choose_tiling(height, width, tier, CONFIG) == tiling


@pytest.mark.parametrize("size", [(10, 10), (3000, 20), (37, 1999), (640, 480)])
@pytest.mark.parametrize("tier", [(1, 3), (4, 8), (9, 15)])
def test_a_tier_gives_its_number_of_crops_for_every_image_size(size, tier):
    rows, columns = choose_tiling(*size, tier, CONFIG)
    assert tier[0] <= rows * columns <= tier[1]
    assert image_tokens((rows, columns), CONFIG, SPECIAL)[1].shape == (1 + rows * columns, 144)


def test_impossible_ranges_and_images_are_refused():
    with pytest.raises(ValueError, match="no tiling"):
        choose_tiling(10, 10, (5, 4), CONFIG)
    with pytest.raises(ValueError, match="max_crops"):
        choose_tiling(10, 10, 0, CONFIG)
    for shape, dtype in (((4, 4), np.uint8), ((4, 4, 4), np.uint8), ((4, 4, 3), np.float32), ((0, 4, 3), np.uint8)):
        with pytest.raises(ValueError, match="uint8"):
            preprocess_image(np.zeros(shape, dtype=dtype), (1, 1), CONFIG, SPECIAL)


# The SPEC's table of tokens and of features inserted.
@pytest.mark.parametrize(
    ("tiling", "inserted", "tokens"),
    [((1, 1), 288, 316), ((1, 2), 384, 412), ((2, 1), 384, 420), ((2, 3), 704, 740), ((12, 1), 1344, 1460)],
)
def test_the_number_of_image_tokens_is_known_from_the_tiling(tiling, inserted, tokens):
    ids, index = image_tokens(tiling, CONFIG, SPECIAL)
    assert len(ids) == tokens
    used = index[index >= 0]
    assert len(used) == inserted == len(used.unique())
    assert (ids[used - 1] == SPECIAL.image_patch).all()  # positions count the begin token, ids do not
    assert set(index[index < 0].tolist()) <= {DROPPED_FEATURE}


def test_without_margins_every_feature_is_kept():
    vision = replace(CONFIG.vision, image_height=32, image_width=32, patch_size=8)
    config = replace(CONFIG, vision=vision, overlap_margins=(0, 0))
    image = preprocess_image(read_rgb("p6_640x480.png"), (2, 3), config, SPECIAL)
    assert image.crops.shape == (7, 16, 192)
    assert image.image_input_idx.shape == (7, 4)
    # 2 x 2 features per crop; begin, start, 2 rows of 3, end and start come first, so the tiled grid begins at 10
    assert image.image_input_idx[0].tolist() == [2, 3, 5, 6]
    assert image.image_input_idx[1].tolist() == [10, 11, 17, 18]
    assert image.image_input_idx[6].tolist() == [28, 29, 35, 36]


def test_crops_overlap_and_tiles_form_the_image():
    """The tiles, placed where they were cut, form one image and agree where they overlap."""
    config = replace(
        CONFIG, vision=VisionConfig(56, 56, 7, 32, 2, 64, 5, 1e-5), overlap_margins=(2, 2), pooling_height=2
    )
    crops = preprocess_image(read_rgb("p5_900x220.png"), (1, 2), config, SPECIAL).crops
    pictures = crops[1:].view(2, 8, 8, 7, 7, 3).permute(0, 1, 3, 2, 4, 5).reshape(2, 56, 56, 3)
    torch.testing.assert_close(pictures[0][:, 28:], pictures[1][:, :28], atol=0, rtol=0)
