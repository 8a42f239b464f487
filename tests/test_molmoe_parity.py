"""The model agrees with the reference implementation on every case and variant of the fixtures."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from knobctl.precompute.models.molmoe.experts import EXPERTS_IMPLEMENTATIONS
from knobctl.tests.support.molmoe_fixtures import (
    CASES,
    VARIANTS,
    case_inputs,
    case_tensors,
    inputs_from_image,
    padded,
    plan_of,
    tiny_model,
)
from knobctl.tests.support.reference_decoding import (
    causal_mask,
    embed_inputs,
    forward_logits,
    generate,
    position_ids_of,
    real_positions,
)

IMAGE_CASES = [case for case, entry in CASES.items() if entry["source"] is not None]


def assert_close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("case", IMAGE_CASES)
def test_vision_features(case):
    inputs = case_inputs(case)
    features = tiny_model().encode_images(inputs.crops, inputs.masks)
    is_crop = case_tensors(case)["in.image_input_idx"].ge(0).any(dim=-1)  # not the padding of a batch
    assert_close(features[is_crop], case_tensors(case)["out.base.vision_features"][is_crop])


def test_every_vit_layer_and_the_pooled_vectors():
    inputs, wanted = case_inputs("one_tile"), case_tensors("one_tile")
    backbone, outputs = tiny_model().vision_backbone, {}
    layers = backbone.image_vit.layers
    hooks = [
        layer.register_forward_hook(lambda _m, _i, output, index=index: outputs.update({index: output}))
        for index, layer in enumerate(layers)
    ]
    try:
        features = backbone.features(inputs.crops, inputs.masks)
    finally:
        for hook in hooks:
            hook.remove()
    assert sorted(outputs) == [0, 1, 2, 3]  # the last layer's output is unused, so it is not run
    for index, output in outputs.items():
        assert_close(output, wanted[f"out.base.vit_block_out.{index}"])
    assert_close(layers[4](outputs[3], attention_mask=None), wanted["out.base.vit_block_out.4"])
    assert_close(backbone.pool(features).flatten(0, 2), wanted["out.base.pooled"].squeeze(1))


@pytest.mark.parametrize(("case", "variant"), VARIANTS)
def test_hidden_state_after_every_block(case, variant):
    model, inputs, wanted = tiny_model(), case_inputs(case), case_tensors(case)
    is_real = real_positions(inputs.input_ids)
    hidden = embed_inputs(model, inputs)
    assert_close(hidden[is_real], wanted["out.base.embeds"][is_real])
    mask, position_ids = causal_mask(is_real, is_real.shape[1], hidden.dtype), position_ids_of(is_real)
    compared = 0
    for block, top_k in enumerate(plan_of(case, variant)):
        if top_k:
            hidden = model.run_block(block, hidden, top_k=top_k, position_ids=position_ids, attention_mask=mask)
        if (name := f"out.{variant}.block_out.{block}") in wanted:
            assert_close(hidden[is_real], wanted[name][is_real])
            compared += 1
    assert compared == (4 if variant == "base" or case == "text_only" else 0)


@pytest.mark.parametrize("experts_implementation", EXPERTS_IMPLEMENTATIONS)
@pytest.mark.parametrize(("case", "variant"), VARIANTS)
def test_logits(case, variant, experts_implementation):
    inputs, wanted = case_inputs(case), case_tensors(case)[f"out.{variant}.logits"]
    logits = forward_logits(tiny_model(experts_implementation), inputs, plan_of(case, variant))
    is_real = real_positions(inputs.input_ids)
    step = 1 if wanted.shape[1] == logits.shape[1] else 3
    assert_close(logits[:, ::step][is_real[:, ::step]], wanted[is_real[:, ::step]])


def test_router_logits_and_choice():
    model, inputs, wanted = tiny_model(), case_inputs("text_only"), case_tensors("text_only")
    block, hidden = model.blocks[0], embed_inputs(model, inputs)
    rotary = model.position_embeddings(torch.arange(hidden.shape[1])[None])
    after_attention = hidden + block.attn(block.attn_norm(hidden), rotary, None, None)
    logits, _, index = block.mlp.route(block.ff_norm(after_attention)[0], 4)
    assert_close(logits, wanted["out.base.router_logits.0"][0])
    assert index.tolist() == wanted["out.base.router_topk_index.0"][0].tolist()


@pytest.mark.parametrize(("case", "variant"), VARIANTS)
def test_greedy_tokens(case, variant):
    tokens = generate(tiny_model(), case_inputs(case), plan_of(case, variant), max_new_tokens=8, end_id=None, pad_id=1)
    assert tokens.tolist() == CASES[case]["variants"][variant]["gen_tokens"]


@pytest.mark.parametrize("case", CASES)
def test_generation_stops_at_the_end_token(case):
    run = CASES[case]["eos_override"]
    tokens = generate(
        tiny_model(),
        case_inputs(case),
        plan_of(case, "base"),
        max_new_tokens=8,
        end_id=run["eos_token_id"],
        pad_id=run["pad_token_id"],
    )
    assert tokens.tolist() == run["expected"]


@pytest.mark.parametrize(("case", "variant"), VARIANTS)
def test_logits_of_every_decoding_step(case, variant):
    inputs, wanted = case_inputs(case), case_tensors(case)[f"out.{variant}.gen_step_logits"]
    tokens = torch.tensor(CASES[case]["variants"][variant]["gen_tokens"])
    lengths = real_positions(inputs.input_ids).sum(dim=-1)
    for row, length in enumerate(lengths.tolist()):  # each row alone with its answer appended, without a cache
        ids = torch.cat([inputs.input_ids[row, :length], tokens[row]])[None]
        alone = replace(inputs, input_ids=ids)
        if inputs.crops is not None:
            kept = slice(row, row + 1)
            alone = replace(
                alone,
                crops=inputs.crops[kept],
                masks=inputs.masks[kept],
                image_input_idx=inputs.image_input_idx[kept],
            )
        logits = forward_logits(tiny_model(), alone, plan_of(case, variant))
        assert_close(logits[0, length - 1 : -1], wanted[:, row])


@pytest.mark.parametrize("case", [case for case in IMAGE_CASES if case != "single_crop"])
def test_from_the_image_to_the_model_inputs(case):
    source, wanted = CASES[case]["source"], case_tensors(case)
    made = padded([inputs_from_image(row) for row in source.get("rows", [source])])
    assert made["input_ids"].tolist() == wanted["in.input_ids"].tolist()
    assert_close(made["image_masks"], wanted["in.image_masks"])
    found, indices = made["image_input_idx"].clamp(min=-1), wanted["in.image_input_idx"].clamp(min=-1)
    assert found.tolist() == indices.tolist()


def test_left_padding_does_not_change_real_positions():
    inputs = case_inputs("text_only")
    left = torch.cat([torch.full((1, 3), -1), inputs.input_ids], dim=1)
    logits = forward_logits(tiny_model(), replace(inputs, input_ids=left), plan_of("text_only", "k2"))
    assert_close(logits[:, 3:], case_tensors("text_only")["out.k2.logits"])
    tokens = generate(
        tiny_model(),
        replace(inputs, input_ids=left),
        plan_of("text_only", "k2"),
        max_new_tokens=8,
        end_id=None,
        pad_id=1,
    )
    assert tokens.tolist() == CASES["text_only"]["variants"]["k2"]["gen_tokens"]
