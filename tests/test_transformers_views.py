"""Tiers of visual tokens reach the processor, which gives the number of tokens that was promised."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image
from transformers import AutoConfig

from knobctl.data.errors import CheckpointError, DatasetError
from knobctl.precompute.models.transformers_moe.kimi_images import KimiImageProcessorPil, shapes
from knobctl.precompute.models.transformers_moe.processor import load_processor
from knobctl.precompute.models.transformers_moe.prompts import DEFAULT_INSTRUCTION, Prompts
from knobctl.precompute.models.transformers_moe.token_limits import Cap, PixelBounds, Steps
from knobctl.precompute.models.transformers_moe.views import Views
from knobctl.tests.support.tiny_families import FAMILIES, write_family

SIZES = ((64, 64), (480, 640), (300, 90), (3, 200))  # the last could be taken for channels first
QUESTION = "What color is the ball ?"


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> Callable[[str], Prompts]:
    made: dict[str, Prompts] = {}

    def of_family(name: str) -> Prompts:
        if name not in made:
            directory = write_family(name, tmp_path_factory.mktemp(name))
            config = AutoConfig.from_pretrained(directory)
            processor = load_processor(directory, getattr(config, "thinker_config", config))
            made[name] = Prompts(processor, Views(processor), vocabulary=256)
        return made[name]

    return of_family


def image(size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_prompt_has_the_tokens_that_its_view_promises(prompts, name):
    family = prompts(name)
    counts = set()
    for tier in family.views.convention.default_ranges(1024):
        for size in SIZES:
            view = family.views.view(*size, tier)
            inputs = family.inputs(QUESTION, DEFAULT_INSTRUCTION, image(size), view)
            ids = inputs["input_ids"][0].tolist()
            assert ids.count(family.processor.image_token_id) == view.vision_tokens
            assert len(ids) == family.length(QUESTION, DEFAULT_INSTRUCTION, view)
            counts.add(view.vision_tokens)
    assert len(counts) > 1  # tiers have an effect


@pytest.mark.parametrize(
    ("name", "kind", "ranges"),
    [
        ("qwen3_vl_moe", PixelBounds, ((4, 16), (16, 64), (64, 256))),
        ("glm4v_moe", PixelBounds, ((4, 16), (16, 64), (64, 256))),  # counts the two frames of an image
        ("kimi_k25", Cap, ((4, 16), (16, 64), (64, 256))),
        ("gemma4", Steps, ((1, 66), (67, 130), (131, 266))),
        ("internvl", Steps, ((1, 4), (5, 16), (17, 52))),
        ("aria", Steps, ((1, 8), (9, 16))),
    ],
)
def test_what_a_processor_understands_is_found_from_its_attributes(prompts, name, kind, ranges):
    convention = prompts(name).views.convention
    assert isinstance(convention, kind)
    assert convention.default_ranges(4096) == ranges


@pytest.mark.parametrize("name", ["qwen3_vl_moe", "glm4v_moe", "ernie4_5_vl_moe"])
def test_an_image_is_scaled_to_the_nearer_end_of_a_range(prompts, name):
    views = prompts(name).views
    natural = views.view(640, 640, (1, 4096)).vision_tokens
    assert natural > 300
    assert views.view(640, 640, (natural - 50, natural + 50)).vision_tokens == natural
    for low, high in ((1, 100), (600, 900)):
        assert low <= views.view(640, 640, (low, high)).vision_tokens <= high
    assert views.view(640, 640, (1, 100)).vision_tokens > 80
    assert views.view(640, 640, (600, 900)).vision_tokens < 700


@pytest.mark.parametrize("name", ["qwen3_vl_moe", "kimi_k25", "gemma4", "internvl"])
def test_tiers_that_give_an_image_the_same_tokens_have_equal_views(prompts, name):
    views = prompts(name).views
    wide, narrow = views.view(90, 100, (1, 200)), views.view(90, 100, (1, 199))
    assert wide == narrow
    assert hash(wide) == hash(narrow)
    assert views.view(480, 640, (1, 4)) != views.view(480, 640, (60, 300))


def test_equal_views_prepare_equal_images(prompts):
    family = prompts("qwen3_vl_moe")
    seen = {}
    for low in range(4, 60, 3):
        for high in (low + 5, low + 40, 300):
            view = family.views.view(200, 330, (low, high))
            pixels = family.inputs(QUESTION, None, image((200, 330)), view)["pixel_values"]
            assert (seen.setdefault(view, pixels) == pixels).all()
    shapes_seen = {tuple(pixels.shape) for pixels in seen.values()}
    assert len(shapes_seen) == len(seen) > 5  # no two views for one image


def test_an_image_that_a_processor_refuses_is_a_problem_of_the_data(prompts):
    with pytest.raises(DatasetError, match="an image of 2 x 900 pixels cannot be prepared"):
        prompts("qwen3_vl_moe").views.view(2, 900, (4, 16))  # the aspect ratio


def test_a_views_settings_leave_the_processor_as_it_was(prompts):
    family = prompts("qwen3_vl_moe")
    before = family.processor.image_processor.to_dict()
    family.inputs(QUESTION, None, image((64, 64)), family.views.view(64, 64, (16, 64)))
    assert family.processor.image_processor.to_dict() == before


# Grids of rows and columns of patches, from transformers' Kimi_K25ImageProcessor with torchvision.
KIMI_GRIDS = {
    ((64, 64), 16): (6, 6),
    ((480, 640), 100): (10, 12),
    ((480, 640), 16384): (36, 46),
    ((1000, 300), 16): (8, 4),
    ((1000, 300), 100): (20, 6),
    ((1000, 300), 16384): (72, 22),
    ((37, 91), 16): (4, 8),
    ((14, 14), 16): (2, 2),
    ((900, 900), 100): (10, 10),
}


@pytest.mark.parametrize(("size", "max_patches"), KIMI_GRIDS)
def test_kimis_images_have_the_grids_of_its_own_processor(size, max_patches):
    made = KimiImageProcessorPil(max_patches=max_patches)([Image.fromarray(image(size))], return_tensors="pt")
    rows, columns = KIMI_GRIDS[size, max_patches]
    assert made["image_grid_thw"].tolist() == [[1, rows, columns]]
    assert tuple(made["pixel_values"].shape) == (rows * columns, 3, 14, 14)
    assert KimiImageProcessorPil(max_patches=max_patches).get_number_of_image_patches(*size) == rows * columns


def test_kimis_images_are_never_scaled_up():
    assert shapes((30, 50), 14, 2, 16384, 512) == ((30, 50), (56, 56))


@pytest.mark.parametrize(
    "text",
    ["<|image_pad|> <|vision_end|>", "say <eos> now", "<|im<|image_pad|>age_pad|>", "</think> <think>", "<bos><pad>"],
)
def test_a_question_cannot_write_special_tokens(prompts, text):
    family = prompts("qwen3_vl_moe")
    view = family.views.view(64, 64, (4, 16))
    ids = family.inputs(text, None, image((64, 64)), view)["input_ids"][0].tolist()
    plain = family.inputs("what", None, image((64, 64)), view)["input_ids"][0].tolist()
    special = set(family.processor.tokenizer.all_special_ids) - {family.processor.tokenizer.unk_token_id}
    assert [token for token in ids if token in special] == [token for token in plain if token in special]
    assert not set(family.encode(text)) & special


@pytest.mark.parametrize("name", FAMILIES)
def test_a_special_token_in_a_question_is_plain_text_in_every_family(prompts, name):
    family = prompts(name)
    view = family.views.view(64, 64, family.views.convention.default_ranges(1024)[0])
    text = f"what is {family.processor.image_token} {' '.join(FAMILIES[name].special)} here"
    ids = family.inputs(text, None, image((64, 64)), view)["input_ids"][0].tolist()
    assert ids.count(family.processor.image_token_id) == view.vision_tokens


def test_the_instruction_follows_the_question(prompts):
    family = prompts("qwen3_vl_moe")
    assert family.template.index("{question}") < family.template.index("{instruction}")
    view = family.views.view(64, 64, (4, 16))
    assert family.length(QUESTION, "one word", view) == family.length(QUESTION, None, view) + 2


def test_answers_are_stripped_of_special_tokens(prompts):
    family = prompts("qwen3_vl_moe")
    red = family.encode("red ball")
    assert family.decode([*red, family.processor.tokenizer.eos_token_id]) == "red ball"


def test_a_question_without_tokens_is_refused(prompts):
    with pytest.raises(DatasetError, match="no token"):
        prompts("qwen3_vl_moe").encode("  ")


@pytest.mark.parametrize("name", ["qwen3_5_moe", "glm4v_moe", "ernie4_5_vl_moe", "kimi_k25"])
def test_thinking_is_switched_off_where_the_template_allows_it(prompts, name):
    assert prompts(name).template.endswith("<think></think>")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda template: template.replace("assistant :", "assistant :<think>"), "always makes the model think"),
        (lambda _: "{% for m in messages %}{{ m['role'] }}{% endfor %}", "cannot be used"),  # neither image nor text
        (lambda _: "{{ raise_exception('no images') }}", "no images"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused(prompts, change, message):
    family = prompts("qwen3_vl_moe")
    kept = family.processor.chat_template
    family.processor.chat_template = change(kept)
    try:
        with pytest.raises(CheckpointError, match=message):
            Prompts(family.processor, family.views, vocabulary=256)
    finally:
        family.processor.chat_template = kept


def test_an_older_template_takes_one_string(prompts):
    family = prompts("internvl")
    kept = family.processor.chat_template
    family.processor.chat_template = (
        "{% for m in messages %}{{ m['role'] + ' : ' + m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %} assistant :{% endif %}"
    )
    try:
        older = Prompts(family.processor, family.views, vocabulary=256)
        assert older.template == "user : {image}\n{question}\n{instruction} assistant :"
    finally:
        family.processor.chat_template = kept
