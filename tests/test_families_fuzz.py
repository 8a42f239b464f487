"""Random tiny configs of every family: other depths, widths, experts, top-k, layer kinds and options."""

from __future__ import annotations

import random
from typing import Any

import pytest

from knobctl.tests.support.family_models import FamilyModel
from knobctl.tests.support.tiny_families import FAMILIES, write_family

DRAWS = 3


def drawn(name: str, seed: int) -> dict[str, Any]:
    """Changes of the text config that the family understands."""
    draw = random.Random(f"{name}/{seed}")
    blocks, experts = draw.randint(3, 7), draw.choice([5, 8, 12])
    top_k = draw.randint(3, min(6, experts - 1))  # the tests' small space asks for 3
    text: dict[str, Any] = {"num_hidden_layers": blocks, FAMILIES[name].top_k_field: top_k}
    text |= {"tie_word_embeddings": draw.random() < 0.5, "rms_norm_eps": draw.choice([1e-6, 1e-5])}
    dense = draw.randint(0, min(2, blocks - 2))
    sparse = {"mlp_layer_types": ["dense"] * dense + ["sparse"] * (blocks - dense)}
    if name in ("qwen3_vl_moe", "qwen3_omni_moe", "qwen3_omni_moe_thinker", "internvl"):
        text |= {
            "num_experts": experts,
            "norm_topk_prob": draw.random() < 0.5,
            "num_key_value_heads": draw.choice([1, 4]),
        }
        text |= {"mlp_only_layers": sorted(draw.sample(range(blocks), dense))}
    elif name == "qwen3_5_moe":
        kinds = ["full_attention", *draw.choices(["linear_attention", "full_attention"], k=blocks - 1)]
        draw.shuffle(kinds)
        text |= {"num_experts": experts, "layer_types": kinds}
    elif name in ("glm4v_moe", "kimi_k25"):
        text |= {"n_routed_experts": 8 if name == "kimi_k25" else experts, "first_k_dense_replace": dense}
        text |= {"norm_topk_prob": draw.random() < 0.5, "routed_scaling_factor": draw.choice([1.0, 2.5])}
        text |= {"n_group": 1, "topk_group": 1}
    elif name == "gemma4":
        kinds = [*draw.choices(["sliding_attention", "full_attention"], k=blocks - 1), "full_attention"]
        text |= {"num_experts": experts, "layer_types": kinds, "sliding_window": draw.choice([8, 64])}
        text |= {"use_bidirectional_attention": draw.choice([None, "vision"])}
    elif name == "ernie4_5_vl_moe":
        text |= {"moe_num_experts": experts, **sparse, "moe_num_shared_experts": draw.choice([1, 2])}
    elif name == "aria":
        text |= {"moe_num_experts": experts, "moe_num_shared_experts": draw.choice([1, 2])}
    else:
        text |= {"n_routed_experts": experts, **sparse, "norm_topk_prob": draw.random() < 0.5}
    return text


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(DRAWS))
@pytest.mark.parametrize("name", FAMILIES)
def test_a_random_config_runs_as_the_model_does(name, seed, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    text = drawn(name, seed)
    print(text)
    family = FamilyModel(name, write_family(name, tmp_path / "model", seed=seed, text=text))
    prompt, state = family.prepared((90, 260), tier=family.knobs.space.tiers[0])
    assert family.answer(state, family.knobs.native) == family.generated(family.plain, prompt)
    top_k = text[FAMILIES[name].top_k_field]
    lower = 1 + (seed % (top_k - 1))
    assert family.answer(state, family.uniform(lower)) == family.generated(family.with_top_k(lower), prompt)
