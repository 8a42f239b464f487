"""nano's training: batches, vision targets, steps and the state file."""

from __future__ import annotations

import random
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from knobctl.precompute.models.molmoe.preprocess import preprocess_image
from knobctl.tests.support.reference_decoding import ModelInputs, forward_logits
from knobctl.tools.nano.batches import IGNORED, packed_mask
from knobctl.tools.nano.bundle import training_rng
from knobctl.tools.nano.forward import FIRST_DROPPABLE, answer_logits, draw_plan, encode, full_plan
from knobctl.tools.nano.pixels import TIER_SIDES, crop_images, crop_masks
from knobctl.tools.nano.prior_answers import families_in_need
from knobctl.tools.nano.scenes import COLORS, IMAGE_SIZE, sample_scene
from knobctl.tools.nano.stages import Stage
from knobctl.tools.nano.state import Position, load_moments, load_position, load_weights, save_state
from knobctl.tools.nano.train import Trainer, learning_rate
from knobctl.tools.nano.vision_targets import BLANK, scene_targets
from knobctl.tools.nano.weight_edits import narrow_experts

EASY_TRAIN = Path(str(files("knobctl"))) / "data/bundled/easy_vqa/train.parquet"
STAGE = Stage("test", steps=10, lr=2e-3, last_lr=1e-3, images=4, warmup=1)


@pytest.fixture(scope="module")
def few_images(tmp_path_factory) -> Path:
    """A few of easy_vqa's training images, enough for a step."""
    path = tmp_path_factory.mktemp("easy") / "train.parquet"
    pq.write_table(pq.read_table(EASY_TRAIN).slice(0, 800), path)
    return path


@pytest.fixture(scope="module")
def trainer(few_images) -> Trainer:
    return Trainer(3, easy_path=few_images, bfloat16=False, compiled=False)


@pytest.mark.parametrize("side", TIER_SIDES.values())
def test_batched_crops_equal_those_of_preprocess_image(trainer, side):
    rgb = np.random.default_rng(0).integers(0, 256, (3, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    config = trainer.model.config
    crops, masks = crop_images(rgb, side, config), crop_masks(3, side, config)
    for index in range(3):
        single = preprocess_image(rgb[index], (side, side), config, trainer.source.tokenizer.special)
        torch.testing.assert_close(crops[index], single.crops, rtol=0, atol=0)
        torch.testing.assert_close(masks[index], single.masks, rtol=0, atol=0)


def test_a_packed_question_gets_the_logits_that_it_gets_alone(trainer):
    batch = trainer.source.draw(random.Random(1), "low", 2, easy_share=0.5)
    model = trainer.model
    plan = full_plan(model)
    with torch.inference_mode():
        features = encode(model, batch, bfloat16=False)
        packed = answer_logits(model, batch, features, plan, bfloat16=False)
        row = 1
        before = int((batch.labels[:row] != IGNORED).sum())
        is_last = batch.segments[row] == batch.segments[row].max()
        alone_ids = batch.input_ids[row, (batch.segments[row] == 0) | is_last]
        alone = forward_logits(
            model,
            ModelInputs(
                alone_ids[None],
                batch.crops[row : row + 1],
                batch.masks[row : row + 1],
                batch.image_input_idx[row : row + 1],
            ),
            plan,
        )[0]
    asked = int((batch.labels[row] != IGNORED).sum())
    last = int((batch.labels[row][is_last] != IGNORED).sum())
    torch.testing.assert_close(packed[before + asked - last : before + asked], alone[-last:], rtol=1e-4, atol=1e-4)


def test_a_packed_question_attends_to_the_image_and_itself_only():
    mask = packed_mask(torch.tensor([[0, 0, 1, 1, 2, -1]]))[0, 0] == 0
    assert mask[3].tolist() == [True, True, True, True, False, False]
    assert mask[4].tolist() == [True, True, False, False, True, False]
    assert mask[1].tolist() == [True, True, False, False, False, False]


def test_targets_name_each_card_once_and_leave_blank_paper_out():
    rng = random.Random(2)
    for _ in range(30):
        scene = sample_scene(rng)
        targets = scene_targets(scene, 3)
        assert not ((targets["color"] >= 0) & (targets[BLANK] == 1)).any()
        assert ((targets["color"] >= 0) | (targets[BLANK] == 1)).all()
        tiled = targets["color"][4:]
        assert (tiled >= 0).sum() == len(scene.cards)


def test_training_on_one_batch_lowers_its_loss(trainer):
    torch.manual_seed(0)
    trainer.start_stage(STAGE)
    before = trainer.step(STAGE, 0)
    for _ in range(3):
        after = trainer.step(STAGE, 0)
    tier = next(name for name in before if name.endswith("answers"))
    assert after[tier] < 0.9 * before[tier]


def test_a_stage_leaves_frozen_parameters_unchanged(trainer):
    for stage, frozen in (
        (replace(STAGE, vision_only=True), "blocks.3.attn.att_proj.weight"),
        (replace(STAGE, frozen_tower=True), "vision_backbone.image_projector.w1.weight"),
        (replace(STAGE, frozen_tower=True), "embedding.weight"),
    ):
        kept = trainer.model.get_parameter(frozen).detach().clone()
        trainer.start_stage(stage)
        trainer.step(stage, 0)
        assert torch.equal(trainer.model.get_parameter(frozen), kept)


def test_a_resumed_run_is_bit_equal_to_an_uninterrupted_one(tmp_path, few_images):
    def weights(trainer: Trainer) -> list[torch.Tensor]:
        return [parameter.detach().clone() for parameter in trainer.model.parameters()]

    whole = Trainer(4, easy_path=few_images, bfloat16=False, compiled=False)
    optimizer = whole.start_stage(STAGE)
    whole.step(STAGE, 0)
    save_state(tmp_path / "state.safetensors", whole.model, optimizer, Position("test", 1))
    whole.step(STAGE, 1)

    resumed = Trainer(99, easy_path=few_images, bfloat16=False, compiled=False)
    resumed.seed = 4
    load_weights(tmp_path / "state.safetensors", resumed.model)
    optimizer = resumed.start_stage(STAGE)
    load_moments(tmp_path / "state.safetensors", resumed.model, optimizer)
    assert load_position(tmp_path / "state.safetensors") == Position("test", 1)
    resumed.step(STAGE, 1)
    assert all(torch.equal(one, other) for one, other in zip(weights(whole), weights(resumed), strict=True))


def test_plans_drawn_for_training_keep_the_first_blocks(trainer):
    rng = random.Random(0)
    plans = [draw_plan(trainer.model, rng, fewer_experts=0.5, fewer_blocks=0.5) for _ in range(200)]
    assert all(all(plan[:FIRST_DROPPABLE]) for plan in plans)
    assert {plan.count(0) for plan in plans} == {0, 1, 2, 3, 4}
    assert {k for plan in plans for k in plan} == {0, 4, 6, 8}
    assert all(plan[0] == 8 for plan in plans)


def test_only_the_droppable_blocks_of_a_stage_are_left_out(trainer):
    rng = random.Random(2)
    plans = [
        draw_plan(trainer.model, rng, fewer_experts=0.0, fewer_blocks=0.5, droppable=(3, 6, 8, 10)) for _ in range(200)
    ]
    assert {index for plan in plans for index, top_k in enumerate(plan) if top_k == 0} == {3, 6, 8, 10}
    assert {plan.count(0) for plan in plans} == {0, 1, 2, 3, 4}


def test_question_families_that_a_plan_is_too_small_for():
    def in_need(*plan: int) -> set[str]:
        return families_in_need(plan, blocks={"extreme": 2, "compare": 3}, experts={"sum": 6, "count": 4})

    assert in_need(8, 8, 8, 8, 8, 8) == set()
    assert in_need(8, 8, 0, 8, 8, 8) == set()
    assert in_need(8, 8, 0, 8, 0, 8) == {"extreme"}
    assert in_need(8, 8, 0, 0, 0, 8) == {"extreme", "compare"}
    assert in_need(8, 6, 6, 0, 6, 6) == {"sum"}
    assert in_need(8, 4, 0, 0, 0, 4) == {"extreme", "compare", "sum", "count"}


def test_prior_answers_depend_on_the_question_alone(trainer):
    tokenizer = trainer.source.tokenizer
    batch = trainer.source.draw(random.Random(5), "low", 8, easy_share=0.2)
    replaced = trainer.prior_answers.of(batch, {"compare", "extreme"})
    seen = set()
    for row, families in enumerate(batch.families):
        for number, family in enumerate(families, start=1):
            is_mine = batch.segments[row] == number
            is_answer = is_mine & (batch.labels[row] != IGNORED)
            before, after = batch.labels[row][is_answer].tolist(), replaced.labels[row][is_answer].tolist()
            words = tokenizer.decode(batch.input_ids[row][is_mine].tolist()).split()
            seen.add(family)
            if family == "compare":
                first = next(word for word in words if word in COLORS)
                assert after == [tokenizer.encode(f" {first}")[0], *before[1:]]
            elif family == "extreme":
                assert after == [tokenizer.encode(" red")[0], *before[1:]]
            else:
                assert after == before
                assert torch.equal(replaced.hints[row][is_mine], batch.hints[row][is_mine])
                continue
            assert (replaced.hints[row][is_mine] == IGNORED).all()
    assert {"compare", "extreme", "read", "easy"} <= seen
    assert (replaced.labels != batch.labels).any()


def test_a_share_of_the_images_has_more_inner_cards(trainer):
    def inner_cards(inner_share: float) -> float:
        rng = random.Random(4)
        batch = trainer.source.draw(rng, "high", 60, easy_share=0.0, inner_share=inner_share)
        return float((batch.targets["color"][:, 4:] != IGNORED).sum() / 60)

    assert inner_cards(1.0) > inner_cards(0.5) + 0.2 > inner_cards(0.0) + 0.4


def test_weights_are_restored_from_a_checkpoint_directory(tmp_path, few_images, trainer):
    trainer.write_checkpoint(tmp_path)
    other = Trainer(8, easy_path=few_images, bfloat16=False, compiled=False)
    other.read_checkpoint(tmp_path)
    for one, read in zip(trainer.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(one.half().float(), read)


def test_a_vision_stage_trains_on_its_own_tiers_only(trainer):
    stage = replace(STAGE, vision_only=True, vision_tiers=("medium",))
    trainer.start_stage(stage)
    report = trainer.step(stage, 0)
    assert "medium loss" in report
    assert not {name for name in report if name.startswith(("low", "high"))}


def test_the_hint_of_a_colour_is_its_number_and_of_later_words_the_answer(trainer):
    tokenizer = trainer.source.tokenizer
    rng = random.Random(4)
    scene = sample_scene(rng)
    first, second = scene.cards[:2]
    prompt = tokenizer.encode_prompt(f"what is {first.color} plus {second.color} on the {scene.kind}?")
    answer = tokenizer.encode(" 9")[0]
    hints = dict(trainer.source._hints(scene, prompt, answer))
    at = [prompt.index(tokenizer.encode(f" {card.color}")[0]) for card in (first, second)]
    assert [hints[place] for place in at] == [tokenizer.encode(f" {card.number}")[0] for card in (first, second)]
    assert {place: token for place, token in hints.items() if place not in at} == dict.fromkeys(
        range(at[1] + 1, len(prompt) - 1), answer
    )


def test_the_learning_rate_rises_and_falls():
    stage = replace(STAGE, steps=110, warmup=10, lr=1.0, last_lr=0.0)
    assert [learning_rate(stage, step) for step in (0, 9, 10, 60)] == [0.1, 1.0, 1.0, 0.5]


def test_steps_draw_different_data(trainer):
    one, other = (trainer.source.draw(training_rng(1, "test", step), "low", 2, easy_share=0.0) for step in (0, 1))
    assert not torch.equal(one.crops, other.crops)


def test_narrowed_experts_keep_their_largest_neurons_and_the_others_stay_zero(few_images):
    trainer = Trainer(6, easy_path=few_images, bfloat16=False, compiled=False)
    model = trainer.model
    x_BSD = torch.randn(1, 5, model.config.d_model, generator=torch.Generator().manual_seed(0))
    mlp = model.blocks[4].mlp
    with torch.no_grad():
        whole, wide = mlp(x_BSD, 8), mlp.experts.down_proj.shape[2]
        narrow_experts(model, wide)
        assert torch.equal(mlp(x_BSD, 8), whole)
    product = mlp.experts.down_proj.norm(dim=1) * mlp.experts.gate_up_proj.norm(dim=2)[:, :wide]
    product = product * mlp.experts.gate_up_proj.norm(dim=2)[:, wide:]
    narrow_experts(model, 8)
    kept_EW = mlp.experts.down_proj.norm(dim=1) > 0
    assert (kept_EW.sum(dim=1) == 8).all()
    assert (
        product.masked_fill(~kept_EW, torch.inf).min(dim=1).values >= product[~kept_EW].view(16, -1).max(1)[0]
    ).all()
    trainer.start_stage(STAGE)
    for step in range(2):
        trainer.step(STAGE, step)
    assert torch.equal(mlp.experts.down_proj.norm(dim=1) > 0, kept_EW)
    assert (mlp.experts.gate_up_proj.chunk(2, dim=1)[0].norm(dim=2)[~kept_EW] == 0).all()
