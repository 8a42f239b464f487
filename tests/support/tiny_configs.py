"""Configs of tiny models, one function for each family: from token ids and changes of the text config.

8 experts of which 4 run, width 32, 5 blocks; dense first blocks, linear and sliding attention where a family has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import transformers
from transformers import AutoConfig, PreTrainedConfig

from .tiny_tokenizer import VOCABULARY_SIZE

Ids = Mapping[str, int]
WIDTH, EXPERTS, NATIVE_TOP_K, BLOCKS = 32, 8, 4, 5
_TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY_SIZE,
    "hidden_size": WIDTH,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "max_position_embeddings": 2048,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED = {**_TEXT, "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 64, "moe_intermediate_size": 16}
_QWEN_VISION: dict[str, Any] = {
    "depth": 3,
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_heads": 4,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": WIDTH,
    "num_position_embeddings": 64,
}
_VIT = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_EXPERTS = {"num_experts": EXPERTS, "num_experts_per_tok": NATIVE_TOP_K}
_ROUTED = {"n_routed_experts": EXPERTS, "num_experts_per_tok": NATIVE_TOP_K, "n_shared_experts": 1}


def _mrope(section: list[int], **more: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": section, **more}


def qwen3_vl_moe(ids: Ids, text: Mapping[str, Any]) -> PreTrainedConfig:
    rope = _mrope([2, 1, 1], mrope_interleaved=True)
    return transformers.Qwen3VLMoeConfig(
        text_config={**_GROUPED, **_EXPERTS, "rope_parameters": rope, **text},
        vision_config={**_QWEN_VISION, "deepstack_visual_indexes": [0, 1]},
        **_qwen_ids(ids),
    )


def qwen3_5_moe(ids: Ids, text: Mapping[str, Any]) -> PreTrainedConfig:
    linear = {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
    linear |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "shared_expert_intermediate_size": 16}
    kinds = ["linear_attention", "linear_attention", "full_attention", "linear_attention", "full_attention"]
    count = text.get("num_hidden_layers", BLOCKS)
    rope = _mrope([2, 1, 1], mrope_interleaved=True, partial_rotary_factor=1.0)
    own = {"rope_parameters": rope, "layer_types": (kinds * count)[:count]}
    return transformers.Qwen3_5MoeConfig(
        text_config={**_GROUPED, **_EXPERTS, **linear, **own, **text}, vision_config=_QWEN_VISION, **_qwen_ids(ids)
    )


def qwen3_omni_moe_thinker(ids: Ids, text: Mapping[str, Any]) -> PreTrainedConfig:
    rope = _mrope([2, 1, 1], mrope_interleaved=True)
    audio = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16, "n_window": 4}
    audio |= {"num_mel_bins": 16, "output_dim": WIDTH, "downsample_hidden_size": 8, "max_source_positions": 32}
    config_class = AutoConfig.for_model("qwen3_omni_moe").thinker_config.__class__
    return config_class(
        text_config={**_GROUPED, **_EXPERTS, "rope_parameters": rope, "mlp_only_layers": [1], **text},
        vision_config={**_QWEN_VISION, "deepstack_visual_indexes": [0, 1]},
        audio_config=audio,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        audio_token_id=ids["<|audio_pad|>"],
        audio_start_token_id=ids["<|audio_start|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )


def glm4v_moe(ids: Ids, text: Mapping[str, Any]) -> PreTrainedConfig:
    own = {"first_k_dense_replace": 1, "routed_scaling_factor": 1.5, "norm_topk_prob": True}
    rope = _mrope([1, 1, 2], partial_rotary_factor=1.0)
    vision = {"depth": 2, "hidden_size": WIDTH, "intermediate_size": 64, "num_heads": 4, "patch_size": 14}
    return transformers.Glm4vMoeConfig(
        text_config={**_GROUPED, **_ROUTED, **own, "rope_parameters": rope, **text},
        vision_config={**vision, "out_hidden_size": WIDTH, "image_size": 112},
        image_token_id=ids["<|image|>"],
        video_token_id=ids["<|video|>"],
        image_start_token_id=ids["<|begin_of_image|>"],
        image_end_token_id=ids["<|end_of_image|>"],
        video_start_token_id=ids["<|begin_of_video|>"],
        video_end_token_id=ids["<|end_of_video|>"],
    )


def gemma4(ids: Ids, text: Mapping[str, Any]) -> PreTrainedConfig:
    kinds = ["sliding_attention", "sliding_attention", "full_attention"]
    count = text.get("num_hidden_layers", BLOCKS)
    own = {"vocab_size_per_layer_input": VOCABULARY_SIZE, "hidden_size_per_layer_input": 0, "sliding_window": 16}
    own |= {"enable_moe_block": True, "num_experts": EXPERTS, "top_k_experts": NATIVE_TOP_K, "global_head_dim": 16}
    own |= {"layer_types": [*(kinds * count)[: count - 1], "full_attention"], "use_bidirectional_attention": "vision"}
    vision = {**_VIT, "num_key_value_heads": 4, "head_dim": 8, "patch_size": 8, "pooling_kernel_size": 2}
    return transformers.Gemma4Config(
        text_config={**_GROUPED, **own, **text},
        vision_config={**vision, "position_embedding_size": 256},
        audio_config=None,
        image_token_id=ids["<|image|>"],
        video_token_id=ids["<|video|>"],
        audio_token_id=ids["<|audio|>"],
        boi_token_id=ids["<|image>"],
        eoi_token_id=ids["<image|>"],
        boa_token_id=ids["<|audio>"],
        eoa_token_index=ids["<audio|>"],
    )


def ernie4_5_vl_moe(ids: Ids, text: Mapping[str, Any]) -> PreTrainedConfig:
    count = text.get("num_hidden_layers", BLOCKS)
    own = {"moe_num_experts": EXPERTS, "moe_k": NATIVE_TOP_K, "moe_num_shared_experts": 1}
    own |= {"mlp_layer_types": ["dense"] + ["sparse"] * (count - 1), "rope_parameters": _mrope([1, 1, 2])}
    vision = {"depth": 2, "hidden_size": WIDTH, "intermediate_size": 64, "num_heads": 4, "patch_size": 14}
    return transformers.Ernie4_5_VLMoeConfig(
        text_config={**_GROUPED, "moe_intermediate_size": [16, 16], **own, **text},
        vision_config={**vision, "spatial_merge_size": 2, "temporal_merge_size": 2},
        image_token_id=ids["<|image|>"],
        video_token_id=ids["<|video|>"],
        image_start_token_id=ids["<|image_start|>"],
        image_end_token_id=ids["<|image_end|>"],
        video_start_token_id=ids["<|video_start|>"],
        video_end_token_id=ids["<|video_end|>"],
    )


def aria(ids: Ids, text: Mapping[str, Any]) -> PreTrainedConfig:
    own = {"model_type": "aria_text", "num_key_value_heads": 2, "intermediate_size": 16}
    own |= {"moe_num_experts": EXPERTS, "moe_topk": NATIVE_TOP_K, "moe_num_shared_experts": 1}
    return transformers.AriaConfig(  # the processor takes 490 and 980 pixels only, so patches are large
        text_config={**_TEXT, **own, **text},
        vision_config={"model_type": "idefics3_vision", **_VIT, "image_size": 980, "patch_size": 70},
        projector_patch_to_query_dict={49: 8, 196: 16},
        image_token_id=ids["<|img|>"],
    )


def internvl(ids: Ids, text: Mapping[str, Any]) -> PreTrainedConfig:
    own = {"model_type": "qwen3_moe", "norm_topk_prob": True, "mlp_only_layers": [0]}
    return transformers.InternVLConfig(
        text_config={**_GROUPED, **_EXPERTS, **own, **text},
        vision_config={**_VIT, "image_size": [56, 56], "patch_size": [14, 14]},
        image_token_id=ids["<IMG_CONTEXT>"],
        image_seq_length=4,
    )


def kimi_k25(ids: Ids, text: Mapping[str, Any]) -> PreTrainedConfig:
    own = {"model_type": "deepseek_v3", "num_key_value_heads": 4, "intermediate_size": 64, "moe_intermediate_size": 16}
    own |= {"n_group": 2, "topk_group": 1, "first_k_dense_replace": 1, "q_lora_rank": 16, "kv_lora_rank": 16}
    own |= {"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
    return AutoConfig.for_model(
        "kimi_k25",
        text_config={**_TEXT, **_ROUTED, **own, **text},
        vision_config={**_VIT, "patch_size": 14},
        projection_hidden_size=WIDTH,
        image_token_id=ids["<|media_pad|>"],
    )


def deepseek_ocr2(ids: Ids, text: Mapping[str, Any]) -> PreTrainedConfig:
    count = text.get("num_hidden_layers", BLOCKS)
    own = {"num_key_value_heads": 4, "intermediate_size": 64, "moe_intermediate_size": 16, **_ROUTED}
    own |= {"mlp_layer_types": ["dense"] + ["sparse"] * (count - 1)}
    # The model has 144 queries for a 12 x 12 grid and 256 for 16 x 16, a fourth of the patches along each side.
    sam = {**_VIT, "output_channels": 16, "downsample_channels": [32, WIDTH], "window_size": 8}
    sam |= {"image_size": 256, "patch_size": 4, "global_attn_indexes": []}
    del sam["intermediate_size"]
    encoder = {**_VIT, "num_key_value_heads": 4, "vocab_size": 8, "max_position_embeddings": 512}
    return AutoConfig.for_model(
        "deepseek_ocr2",
        text_config={**_TEXT, **own, **text},
        vision_config={"sam_config": sam, "encoder_config": encoder},
        image_token_id=ids["<image>"],
    )


def _qwen_ids(ids: Ids) -> dict[str, int]:
    return {
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
    }
