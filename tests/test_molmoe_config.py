"""A config is read completely, or refused with the name of the field."""

from __future__ import annotations

import json

import pytest

from knobctl.data.errors import CheckpointError
from knobctl.precompute.models.molmoe.config import MolmoeConfig
from knobctl.tests.support.molmoe_fixtures import FIXTURES, TINY

PUBLISHED = json.loads((FIXTURES / "config.MolmoE-1B-0924.json").read_text())


def changed(**fields: object) -> dict[str, object]:
    vision = {name[7:]: value for name, value in fields.items() if name.startswith("vision_")}
    text = {name: value for name, value in fields.items() if not name.startswith("vision_")}
    return {**PUBLISHED, **text, "vision_backbone": {**PUBLISHED["vision_backbone"], **vision}}


def test_the_published_config():
    config = MolmoeConfig.from_dict(PUBLISHED)
    assert (config.d_model, config.num_blocks, config.num_heads, config.head_width) == (2048, 16, 16, 128)
    assert (config.num_experts, config.native_top_k, config.expert_width) == (64, 8, 1024)
    assert config.projector_width == 1024
    assert (config.embedding_size, config.additional_vocab_size) == (50304, 128)
    assert config.vit_layer_indices == (21, 14)
    assert (config.vision.patch_grid, config.vision.patch_width) == ((24, 24), 588)
    assert (config.pooled_grid, config.window_patches) == ((12, 12), (16, 16))


@pytest.mark.parametrize("source", [PUBLISHED, json.loads((TINY / "config.json").read_text())], ids=["real", "tiny"])
def test_a_written_config_reads_the_same(source):
    config = MolmoeConfig.from_dict(source)
    assert MolmoeConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_the_expert_width_is_given_directly_or_by_ratio():
    assert MolmoeConfig.from_dict(changed(mlp_hidden_size=96)).expert_width == 48
    assert MolmoeConfig.from_dict(changed(mlp_hidden_size=None, mlp_ratio=3)).expert_width == 3072


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("activation_type", "gelu"),
        ("alibi", True),
        ("attention_layer_norm", False),
        ("block_type", "sequential"),
        ("clip_qkv", 8.0),
        ("crop_mode", "resize"),
        ("final_logit_softcapping", 30.0),
        ("image_padding_embed", None),
        ("image_pooling_2d", "none"),
        ("image_projector", "linear"),
        ("layer_norm_type", "default"),
        ("moe_shared_expert", True),
        ("norm_after", True),
        ("qkv_bias", True),
        ("rope_impl", "interleave"),
        ("scale_logits", True),
        ("use_cls_feature", True),
        ("weight_tying", True),
        ("rope_scaling", {"factor": 2}),  # unknown to the project
        ("d_model", "2048"),
        ("d_model", True),
        ("d_model", -1),
        ("n_heads", 7),
        ("n_kv_heads", 3),
        ("moe_top_k", 65),
        ("layer_norm_eps", float("nan")),
        ("rope_full_precision", 1),
        ("vit_layers", []),
        ("vit_layers", [-24]),
        ("overlap_margins", [3, 4]),
        ("overlap_margins", [12, 12]),
        ("overlap_margins", [4]),
        ("image_pooling_h", 5),
        ("embedding_size", 100),
        ("mlp_hidden_size", 7),
        ("vision_image_mlp_activations", "gelu"),
        ("vision_image_model_type", "siglip"),
        ("vision_image_num_pos", 730),
        ("vision_image_patch_size", 13),
        ("vision_image_head_dim", 32),
        ("vision_image_default_input_size", [336]),
        ("vision_image_rope", True),
    ],
)
def test_an_unsupported_field_is_named(field, value):
    with pytest.raises(CheckpointError, match=f'"(vision_backbone.)?{field.removeprefix("vision_")}"'):
        MolmoeConfig.from_dict(changed(**{field: value}))


@pytest.mark.parametrize("field", ["d_model", "moe_top_k", "crop_mode", "vit_layers", "vision_backbone", "rope_theta"])
def test_a_missing_field_is_named(field):
    fields = {name: value for name, value in PUBLISHED.items() if name != field}
    with pytest.raises(CheckpointError, match=f'"{field}" is missing'):
        MolmoeConfig.from_dict(fields)


@pytest.mark.parametrize("content", ["", "[1, 2]", "{", '"text"', "[" * 100_000])
def test_a_file_that_is_not_a_config_is_refused(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        MolmoeConfig.from_json(path)


def test_an_oversized_file_is_refused(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(" " * (2 << 20) + "{}")
    with pytest.raises(CheckpointError, match="bytes"):
        MolmoeConfig.from_json(path)
