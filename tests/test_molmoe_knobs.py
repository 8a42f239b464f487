"""Top-k and skipped blocks apply per call; all expert implementations agree; decoding and training work."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import DynamicCache

from knobctl.precompute.execution.request_decoder import RequestDecoder
from knobctl.precompute.models.backbone import EmbeddedPrompt
from knobctl.precompute.models.molmoe.checkpoint import load_molmoe
from knobctl.precompute.models.molmoe.config import MolmoeConfig
from knobctl.precompute.models.molmoe.experts import EXPERTS_IMPLEMENTATIONS
from knobctl.precompute.models.molmoe.graph_decoder import GraphDecoder
from knobctl.precompute.models.molmoe.model import Molmoe
from knobctl.tests.support.molmoe_backbone import backbone_of
from knobctl.tests.support.molmoe_fixtures import CASES, TINY, case_inputs, plan_of, tiny_model
from knobctl.tests.support.reference_decoding import ModelInputs, embed_inputs, forward_logits, generate, run_blocks

CONFIG = MolmoeConfig.from_json(TINY / "config.json")


def run(model: Molmoe, hidden: torch.Tensor, top_k: int, block: int = 1) -> torch.Tensor:
    position_ids = torch.arange(hidden.shape[1])[None]
    return model.run_block(block, hidden, top_k=top_k, position_ids=position_ids)


@pytest.fixture
def hidden() -> torch.Tensor:
    return torch.randn(1, 9, CONFIG.d_model, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("experts_implementation", EXPERTS_IMPLEMENTATIONS)
@torch.inference_mode()
def test_lowering_k_drops_the_terms_of_the_lowest_ranks(hidden, experts_implementation):
    model = tiny_model(experts_implementation)
    mixture = model.blocks[1].mlp
    _, weight, index = mixture.route(hidden[0], 4)
    terms = torch.zeros(4, *hidden[0].shape)
    for rank in range(4):
        for token in range(hidden.shape[1]):
            expert = index[token, rank]
            gate, up = (mixture.experts.gate_up_proj[expert] @ hidden[0, token]).chunk(2)
            inner = torch.nn.functional.silu(gate) * up
            terms[rank, token] = weight[token, rank] * (mixture.experts.down_proj[expert] @ inner)
    for top_k in (1, 2, 3, 4):
        torch.testing.assert_close(mixture(hidden, top_k)[0], terms[:top_k].sum(dim=0), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_k_applies_to_one_call_only(hidden):
    model = tiny_model()
    before = run(model, hidden, top_k=4)
    assert not torch.equal(run(model, hidden, top_k=1), before)
    for wrong in (0, 9):
        with pytest.raises(ValueError, match="top_k"):
            run(model, hidden, top_k=wrong)
    assert torch.equal(run(model, hidden, top_k=4), before)


@torch.inference_mode()
def test_several_positions_after_a_cached_past_need_a_mask(hidden):
    model, cache = tiny_model(), DynamicCache()
    rotary = model.position_embeddings(torch.arange(9)[None])
    model.run_block(0, hidden, top_k=4, position_embeddings=rotary, cache=cache)
    with pytest.raises(ValueError, match="attention_mask"):
        model.run_block(0, hidden[:, :2], top_k=4, position_embeddings=rotary, cache=cache)


def test_a_feature_beyond_its_row_is_an_error():
    model, ids = tiny_model(), torch.zeros(2, 5, dtype=torch.long)
    features = torch.ones(2, 1, 1, CONFIG.d_model)
    with torch.inference_mode():
        placed = model.embed(ids, features, torch.tensor([[[4]], [[-1]]]))
        plain = model.embed(ids)
        assert torch.equal(placed[1], plain[1])
        torch.testing.assert_close(placed[0, 4], plain[0, 4] + 1)
        assert torch.equal(placed[0, :4], plain[0, :4])
        with pytest.raises((IndexError, RuntimeError), match="out of"):
            model.embed(ids, features, torch.tensor([[[5]], [[-1]]]))


@pytest.mark.parametrize("experts_implementation", EXPERTS_IMPLEMENTATIONS)
def test_gradients_agree_and_reach_every_parameter(experts_implementation):
    def gradients(implementation: str) -> dict[str, torch.Tensor | None]:
        model = Molmoe(CONFIG, experts_implementation=implementation).init_weights(seed=1, std=0.2)
        generator = torch.Generator().manual_seed(2)
        vision = CONFIG.vision
        crops = torch.randn(2, 2, vision.num_patches, vision.patch_width, generator=generator)
        masks = torch.tensor([0.0, 0.5]).repeat(vision.num_patches // 2).expand(2, 2, -1)
        index = torch.arange(2, 34).view(1, 2, 16).expand(2, -1, -1)
        # ids of both embedding tables
        ids = torch.randint(0, CONFIG.embedding_size + CONFIG.additional_vocab_size, (2, 40), generator=generator)
        hidden = model.embed(ids, model.encode_images(crops, masks), index)
        rotary = model.position_embeddings(torch.arange(40).expand(2, -1))
        for block in range(CONFIG.num_blocks):
            hidden = model.run_block(block, hidden, top_k=3, position_embeddings=rotary)
        model.logits(hidden).logsumexp(dim=-1).square().mean().backward()
        return {name: parameter.grad for name, parameter in model.named_parameters()}

    if experts_implementation == "segmented":  # writes its products in place, so it is for inference only
        with pytest.raises(RuntimeError, match="out="):
            gradients(experts_implementation)
        return
    wanted, found = gradients("eager"), gradients(experts_implementation)
    unused = {name for name, gradient in found.items() if gradient is None}
    assert all(name.startswith("vision_backbone.image_vit.layers.4.") for name in unused)
    for name, gradient in found.items():
        if gradient is not None:
            assert gradient.any(), name
            torch.testing.assert_close(gradient, wanted[name], atol=1e-4, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


def test_weights_drawn_from_a_seed_are_reproducible():
    first, second, other = (Molmoe(CONFIG).init_weights(seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])
    assert first["blocks.0.attn.qk_norm_weight"].eq(1).all()


@torch.inference_mode()
def test_grouped_key_heads_act_as_if_repeated():
    grouped = replace(CONFIG, num_kv_heads=2)
    model = Molmoe(grouped).init_weights(seed=5, std=0.2)
    full = Molmoe(CONFIG).init_weights(seed=6)
    state = {}
    d_model, head = CONFIG.d_model, CONFIG.head_width
    for name, tensor in model.state_dict().items():
        if name.endswith("att_proj.weight"):
            query, key, value = tensor.split([d_model, 2 * head, 2 * head])
            key, value = (part.view(2, head, -1).repeat_interleave(2, dim=0).flatten(0, 1) for part in (key, value))
            tensor = torch.cat([query, key, value])
        elif name.endswith("qk_norm_weight"):
            tensor = torch.ones(2 * d_model)  # all ones: repeating heads does not change the mean square
        state[name] = tensor
    full.load_state_dict(state)
    inputs, plan = case_inputs("text_only"), plan_of("text_only", "base")
    found, wanted = forward_logits(model, inputs, plan), forward_logits(full, inputs, plan)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_half_precision_gives_similar_image_features(dtype):
    model, inputs = load_molmoe(TINY, dtype=dtype), case_inputs("one_tile")
    features = model.encode_images(inputs.crops, inputs.masks)
    wanted = tiny_model().encode_images(inputs.crops, inputs.masks)
    assert features.dtype == dtype
    assert torch.cosine_similarity(features.float(), wanted, dim=-1).min() > 0.99
    logits = forward_logits(model, inputs, plan_of("one_tile", "base"))
    assert logits.dtype == dtype
    assert logits.isfinite().all()
    tokens = generate(model, inputs, plan_of("one_tile", "base"), max_new_tokens=3, end_id=None, pad_id=1)
    assert tokens.shape == (1, 3)


def on_device(inputs: ModelInputs, device: torch.device) -> ModelInputs:
    parts = (inputs.input_ids, inputs.crops, inputs.masks, inputs.image_input_idx)
    return ModelInputs(*(None if part is None else part.to(device) for part in parts))


@torch.inference_mode()
def decoded(decoder: RequestDecoder, case: str, variant: str, num_tokens: int = 8, **options: bool) -> list[list[int]]:
    """Runs a case's prompt into the decoder's states, and decodes its answer."""
    model, plan = decoder.model, plan_of(case, variant)
    prompt = EmbeddedPrompt(embed_inputs(model.molmoe, case_inputs(case)))
    hidden, positions = prompt.hidden_1SD, model.positions(prompt, 0, prompt.length)
    for block, (state, top_k) in enumerate(zip(decoder.new_prompt(), plan, strict=True)):
        if top_k:
            hidden = model.run_block(block, hidden, top_k=top_k, positions=positions, state=state)
    first = int(model.logits(hidden[:, -1:]).argmax())
    return [list(decoder.decode(prompt, plan, first_token=first, max_new_tokens=num_tokens, **options))]


@pytest.mark.parametrize(
    ("case", "variant"),
    [("text_only", "base"), ("text_only", "kmix"), ("text_only", "skip0"), ("multi_crop", "k2_skip1")],
)
def test_the_request_decoder_gives_the_reference_tokens(case, variant):
    decoder = RequestDecoder(backbone_of(tiny_model()), 120)
    assert decoded(decoder, case, variant) == CASES[case]["variants"][variant]["gen_tokens"]


def test_one_decoder_serves_different_plans_in_turn():
    decoder = RequestDecoder(backbone_of(tiny_model()), 120)
    for variant in ("base", "k2", "skip0", "base"):
        assert decoded(decoder, "text_only", variant) == CASES["text_only"]["variants"][variant]["gen_tokens"]


def test_the_request_decoder_stops_at_an_end_token_and_refuses_what_does_not_fit():
    expected = CASES["text_only"]["eos_override"]
    model = backbone_of(tiny_model(), end_id=expected["eos_token_id"])
    decoder = RequestDecoder(model, 20)
    assert decoded(decoder, "text_only", "base") == expected["expected"]
    assert decoded(decoder, "text_only", "base", ends=False) == CASES["text_only"]["variants"]["base"]["gen_tokens"]
    with pytest.raises(ValueError, match="do not fit"):
        decoded(decoder, "text_only", "base", num_tokens=10)


def prefilled(
    case: str, variant: str, model: Molmoe, capacity: int = 120, kind: type[GraphDecoder] = GraphDecoder
) -> tuple[GraphDecoder, int, int]:
    """Returns a decoder that holds a case's prompt, the prompt's length, and the answer's first token."""
    inputs, cache = on_device(case_inputs(case), model.device), DynamicCache()
    hidden, length = embed_inputs(model, inputs), inputs.input_ids.shape[1]
    plan, place = plan_of(case, variant), torch.arange(length, device=model.device)[None]
    hidden = run_blocks(model, hidden, plan, position_ids=place, attention_mask=None, cache=cache)
    decoder = kind(model, capacity)
    kept = [block for block, top_k in enumerate(plan) if top_k]
    decoder.load_prompt(
        {block: cache.layers[block].keys for block in kept}, {block: cache.layers[block].values for block in kept}
    )
    return decoder, length, int(model.logits(hidden[:, -1:]).argmax())


class ReplayedDecoder(GraphDecoder):
    """Replays calls instead of CUDA graphs, so that the CPU runs the steps that a graph would record."""

    def _capture(self, function):
        return SimpleNamespace(replay=function)


@pytest.mark.parametrize("variant", ["base", "kmix", "skip2", "k2"])
@torch.inference_mode()
def test_a_step_that_graphs_record_keeps_its_addresses_and_gives_the_reference_tokens(variant):
    decoder, length, first = prefilled("text_only", variant, tiny_model(), kind=ReplayedDecoder)
    plan, state = plan_of("text_only", variant), (decoder._hidden_11D, decoder._token_11, *decoder._rotary)
    addresses = [tensor.data_ptr() for tensor in state]
    for _ in range(2):
        tokens = decoder.decode(plan, length=length, first_token=first, max_new_tokens=8, end_id=None)
        assert [list(tokens)] == CASES["text_only"]["variants"][variant]["gen_tokens"]
    assert [t.data_ptr() for t in (decoder._hidden_11D, decoder._token_11, *decoder._rotary)] == addresses
    assert decoder.num_graphs == 2 + sum(top_k > 0 for top_k in plan)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("variant", ["base", "kmix", "skip2", "k2_skip1"])
@torch.inference_mode()
def test_graphs_replay_what_the_blocks_compute(variant):
    model = load_molmoe(TINY, device="cuda")
    decoder, length, first = prefilled("text_only", variant, model)
    plan = plan_of("text_only", variant)
    for _ in range(2):  # captured, then replayed
        tokens = decoder.decode(plan, length=length, first_token=first, max_new_tokens=8, end_id=None)
        assert [list(tokens)] == CASES["text_only"]["variants"][variant]["gen_tokens"]
    assert decoder.num_graphs == 2 + sum(top_k > 0 for top_k in plan)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("case", CASES)
def test_reference_tokens_on_the_gpu(case):
    inputs = case_inputs(case)
    on_gpu = on_device(inputs, torch.device("cuda"))
    model, plan = load_molmoe(TINY, device="cuda"), plan_of(case, "base")
    tokens = generate(model, on_gpu, plan, max_new_tokens=8, end_id=None, pad_id=1)
    assert tokens.tolist() == CASES[case]["variants"]["base"]["gen_tokens"]
