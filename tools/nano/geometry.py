"""nano's configuration: the architecture of the published model, small enough for a CPU."""

from __future__ import annotations

from ...precompute.models.molmoe.config import MolmoeConfig, VisionConfig


def nano_config(vocab_size: int) -> MolmoeConfig:
    """Returns the config of nano for a tokenizer of this many tokens.

    Half of 16 narrow experts are used, so that each expert matters. Crops of 32 pixels yield four features each, so a
    sequence has 30 to 70 tokens.
    """
    return MolmoeConfig(
        d_model=96,
        num_blocks=16,
        num_heads=4,
        num_kv_heads=4,
        num_experts=16,
        native_top_k=8,
        feed_forward_width=64,
        vocab_size=vocab_size,
        embedding_size=vocab_size,
        additional_vocab_size=8,
        norm_eps=1e-5,
        rope_theta=10000.0,
        rope_full_precision=True,
        max_position_embeddings=512,
        pad_token_id=1,
        float32_vision_attention=True,
        vit_layers=(-1, -2),
        pooling_height=4,
        pooling_width=4,
        overlap_margins=(0, 0),
        max_crops=9,
        vision=VisionConfig(
            image_height=32,
            image_width=32,
            patch_size=4,
            width=96,
            num_heads=8,
            mlp_width=256,
            num_layers=3,
            norm_eps=1e-5,
        ),
    )
