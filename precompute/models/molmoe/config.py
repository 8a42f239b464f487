"""A MolmoE checkpoint's `config.json`, checked field by field.

All geometry of the model and of its image preprocessing comes from here. A field that affects the result is rejected by
name when its value is not implemented; so is an unknown field.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....data.errors import CheckpointError
from ....data.files.bounded_json import read_json_object
from ....data.files.json_fields import REQUIRED, JsonFields

_MAX_BYTES = 1 << 20

# Fields that change the result, with the only values that are implemented.
_FIXED: dict[str, tuple[Any, ...]] = {
    "activation_type": ("swiglu",),
    "alibi": (False,),
    "attention_layer_norm": (True,),
    "attention_layer_norm_with_affine": (True,),
    "attn_logit_softcapping": (None,),
    "bias_for_layer_norm": (False,),
    "block_type": ("moe",),
    "clip_qkv": (None,),
    "crop_mode": ("overlap-and-resize-c2",),
    "final_logit_softcapping": (None,),
    "head_dim": (None,),
    "image_padding_embed": ("pad_and_partial_pad",),
    "image_pooling_2d": ("attention-meanq",),
    "image_projector": ("mlp",),
    "include_bias": (False,),
    "layer_norm_type": ("rms",),
    "layer_norm_with_affine": (True,),
    "moe_interleave": (False,),
    "moe_shared_expert": (False,),
    "multi_query_attention": (None, False),
    "norm_after": (False,),
    "normalize_input_embeds": (False,),
    "qkv_bias": (False,),
    "rope": (True,),
    "rope_impl": ("llama",),
    "scale_logits": (False,),
    "tie_word_embeddings": (False,),
    "use_cls_feature": (False,),
    "use_col_tokens": (True,),
    "use_position_ids": (True,),
    "weight_tying": (False,),
}
# Values of fields that a config may omit. The other fields are required.
_FIXED_DEFAULTS: dict[str, Any] = {
    "attention_layer_norm_with_affine": True,
    "attn_logit_softcapping": None,
    "alibi": False,
    "clip_qkv": None,
    "final_logit_softcapping": None,
    "head_dim": None,
    "layer_norm_with_affine": True,
    "moe_interleave": False,
    "moe_shared_expert": False,
    "multi_query_attention": None,
    "normalize_input_embeds": False,
    "scale_logits": False,
    "tie_word_embeddings": False,
    "use_col_tokens": True,
}
_FIXED_VISION: dict[str, tuple[Any, ...]] = {
    "image_mlp_activations": ("quick_gelu",),
    "image_model_type": ("openai",),
    "resize_mode": ("default",),
}
# Fields of training and bookkeeping, without effect on inference.
# fmt: off
_IGNORED = frozenset([
    "alibi_bias_max", "always_start_with_space", "architectures", "attention_dropout", "attention_type", "auto_map",
    "block_group_size", "default_inference_len", "do_random_scale", "dtype", "embedding_dropout",
    "fix_image_input_idx", "gin_bindings", "image_feature_dropout", "init_cutoff_factor", "init_device", "init_fn",
    "init_std", "initializer_range", "llm_load_path", "loss_token_weighting", "low_cpu_fsdp", "max_sequence_length",
    "message_formatting", "moe_capacity_factor", "moe_dropless", "moe_lbl_in_fp32", "moe_log_expert_assignment",
    "moe_loss_weight", "moe_mlp_impl", "moe_zloss_weight", "model_type", "new_embedding_init_range", "pad_to",
    "pad_tokenizer", "precision", "prompt_override", "prompt_type", "query_pre_attn_scalar", "residual_dropout",
    "response_attention_dropout", "response_residual_dropout", "system_prompt_kind",
    "torch_dtype", "transformers_version", "unconditioned", "use_cache", "vit_load_path",
])
_IGNORED_VISION = frozenset([
    "attention_dropout", "fsdp_wrap", "image_dropout_rate", "initializer_range", "residual_dropout",
    "image_pos_patch_size",
])
# fmt: on


@dataclass(frozen=True)
class VisionConfig:
    """The vision tower. Widths are numbers of entries."""

    image_height: int  # of a crop, in pixels
    image_width: int  # of a crop, in pixels
    patch_size: int  # pixels
    width: int
    num_heads: int
    mlp_width: int
    num_layers: int
    norm_eps: float

    @property
    def patch_grid(self) -> tuple[int, int]:
        """Rows and columns of patches in a crop."""
        return self.image_height // self.patch_size, self.image_width // self.patch_size

    @property
    def num_patches(self) -> int:
        return self.patch_grid[0] * self.patch_grid[1]

    @property
    def patch_width(self) -> int:
        """Entries of one flattened RGB patch."""
        return 3 * self.patch_size**2


@dataclass(frozen=True)
class MolmoeConfig:
    """Geometry and constants of one MolmoE checkpoint. `to_dict` gives the published field names."""

    d_model: int
    num_blocks: int
    num_heads: int
    num_kv_heads: int
    num_experts: int
    native_top_k: int
    feed_forward_width: int  # twice the width of an expert and of the image projector
    vocab_size: int
    embedding_size: int  # rows of the first input table and of the head
    additional_vocab_size: int  # rows of the second input table
    norm_eps: float
    rope_theta: float
    rope_full_precision: bool
    max_position_embeddings: int
    pad_token_id: int
    float32_vision_attention: bool
    vit_layers: tuple[int, ...]
    pooling_height: int
    pooling_width: int
    overlap_margins: tuple[int, int]  # patches: left and top, right and bottom
    max_crops: int
    vision: VisionConfig

    @classmethod
    def from_json(cls, path: Path | str) -> MolmoeConfig:
        """Reads `config.json`.

        Raises:
            CheckpointError: the file is absent or not JSON, or has a field that is not supported.
        """
        path = Path(path)
        return cls.from_dict(read_json_object(path, CheckpointError, max_bytes=_MAX_BYTES), source=str(path))

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], *, source: str = "config") -> MolmoeConfig:
        """Builds the config from the published fields.

        Raises:
            CheckpointError: names the field that is missing, unknown, of the wrong type or not supported.
        """
        reader = JsonFields(fields, source, CheckpointError)
        for name, allowed in _FIXED.items():
            reader.one_of(name, allowed, default=_FIXED_DEFAULTS.get(name, REQUIRED))
        heads = reader.count("n_heads")
        width = reader.count("d_model")
        feed_forward_width = reader.optional("mlp_hidden_size", JsonFields.count)
        mlp_ratio = reader.optional("mlp_ratio", JsonFields.count)
        if feed_forward_width is None:
            feed_forward_width = (mlp_ratio or reader.count("mlp_ratio")) * width
        config = cls(
            d_model=width,
            num_blocks=reader.count("n_layers"),
            num_heads=heads,
            num_kv_heads=reader.optional("n_kv_heads", JsonFields.count) or heads,
            num_experts=reader.count("moe_num_experts"),
            native_top_k=reader.count("moe_top_k"),
            feed_forward_width=feed_forward_width,
            vocab_size=reader.count("vocab_size"),
            embedding_size=reader.optional("embedding_size", JsonFields.count) or reader.count("vocab_size"),
            additional_vocab_size=reader.integer("additional_vocab_size", minimum=0),
            norm_eps=reader.positive("layer_norm_eps"),
            rope_theta=reader.positive("rope_theta"),
            rope_full_precision=reader.boolean("rope_full_precision"),
            max_position_embeddings=reader.count("max_position_embeddings"),
            pad_token_id=reader.integer("pad_token_id", minimum=0),
            float32_vision_attention=reader.boolean("float32_attention"),
            vit_layers=_integers(reader, "vit_layers"),
            pooling_height=reader.count("image_pooling_h"),
            pooling_width=reader.count("image_pooling_w"),
            overlap_margins=_margins(reader, "overlap_margins"),
            max_crops=reader.count("max_crops"),
            vision=_vision_config(reader.fields("vision_backbone")),
        )
        reader.refuse_others(_IGNORED)
        _check_geometry(config, reader)
        return config

    def to_dict(self) -> dict[str, Any]:
        """Returns the published field names and values, as in `config.json`."""
        vision = self.vision
        return {
            "model_type": "molmo",
            **{name: allowed[0] for name, allowed in _FIXED.items()},
            "d_model": self.d_model,
            "n_layers": self.num_blocks,
            "n_heads": self.num_heads,
            "n_kv_heads": None if self.num_kv_heads == self.num_heads else self.num_kv_heads,
            "moe_num_experts": self.num_experts,
            "moe_top_k": self.native_top_k,
            "mlp_hidden_size": self.feed_forward_width,
            "vocab_size": self.vocab_size,
            "embedding_size": self.embedding_size,
            "additional_vocab_size": self.additional_vocab_size,
            "layer_norm_eps": self.norm_eps,
            "rope_theta": self.rope_theta,
            "rope_full_precision": self.rope_full_precision,
            "max_position_embeddings": self.max_position_embeddings,
            "pad_token_id": self.pad_token_id,
            "float32_attention": self.float32_vision_attention,
            "vit_layers": list(self.vit_layers),
            "image_pooling_h": self.pooling_height,
            "image_pooling_w": self.pooling_width,
            "overlap_margins": list(self.overlap_margins),
            "max_crops": self.max_crops,
            "vision_backbone": {
                **{name: allowed[0] for name, allowed in _FIXED_VISION.items()},
                "image_default_input_size": [vision.image_height, vision.image_width],
                "image_patch_size": vision.patch_size,
                "image_emb_dim": vision.width,
                "image_num_heads": vision.num_heads,
                "image_num_key_value_heads": vision.num_heads,
                "image_head_dim": vision.width // vision.num_heads,
                "image_mlp_dim": vision.mlp_width,
                "image_num_layers": vision.num_layers,
                "image_num_pos": vision.num_patches + 1,
                "image_norm_eps": vision.norm_eps,
            },
        }

    @property
    def head_width(self) -> int:
        return self.d_model // self.num_heads

    @property
    def expert_width(self) -> int:
        return self.feed_forward_width // 2

    @property
    def projector_width(self) -> int:
        return self.feed_forward_width // 2

    @property
    def pooled_grid(self) -> tuple[int, int]:
        """Rows and columns of pooled features in a crop."""
        rows, columns = self.vision.patch_grid
        return rows // self.pooling_height, columns // self.pooling_width

    @property
    def features_per_crop(self) -> int:
        return self.pooled_grid[0] * self.pooled_grid[1]

    @property
    def window_patches(self) -> tuple[int, int]:
        """Rows and columns of patches from one crop's start to the next crop's."""
        rows, columns = self.vision.patch_grid
        return rows - sum(self.overlap_margins), columns - sum(self.overlap_margins)

    @property
    def vit_layer_indices(self) -> tuple[int, ...]:
        """`vit_layers` counted from the first layer, in the published order."""
        return tuple(index % self.vision.num_layers for index in self.vit_layers)


def _integers(reader: JsonFields, name: str) -> tuple[int, ...]:
    values = reader.each(name, JsonFields.integer)
    if not values:
        raise reader.fail(name, "must be a list of at least one whole number, not []")
    return tuple(values)


def _margins(reader: JsonFields, name: str) -> tuple[int, int]:
    value = _integers(reader, name)
    if len(value) != 2 or min(value) < 0:
        raise reader.fail(name, f"must be two numbers of patches, not {list(value)}")
    return value[0], value[1]


def _vision_config(reader: JsonFields) -> VisionConfig:
    for name, allowed in _FIXED_VISION.items():
        reader.one_of(name, allowed, default=allowed[0] if name == "resize_mode" else REQUIRED)
    size = _integers(reader, "image_default_input_size")
    if len(size) != 2 or min(size) < 1:
        raise reader.fail("image_default_input_size", f"is {list(size)}, not a height and a width in pixels.")
    vision = VisionConfig(
        image_height=size[0],
        image_width=size[1],
        patch_size=reader.count("image_patch_size"),
        width=reader.count("image_emb_dim"),
        num_heads=reader.count("image_num_heads"),
        mlp_width=reader.count("image_mlp_dim"),
        num_layers=reader.count("image_num_layers"),
        norm_eps=reader.positive("image_norm_eps"),
    )
    if size[0] % vision.patch_size or size[1] % vision.patch_size:
        raise reader.fail("image_patch_size", f"is {vision.patch_size}, which does not divide {list(size)}.")
    if vision.width % vision.num_heads:
        raise reader.fail("image_num_heads", f"is {vision.num_heads}, which does not divide {vision.width}.")
    reader.one_of("image_num_pos", (vision.num_patches + 1,))
    reader.one_of("image_head_dim", (vision.width // vision.num_heads,))
    reader.one_of("image_num_key_value_heads", (vision.num_heads,))
    reader.refuse_others(_IGNORED_VISION)
    return vision


def _check_geometry(config: MolmoeConfig, reader: JsonFields) -> None:
    """Raises CheckpointError for inconsistent sizes, naming the field."""

    def refuse(name: str, problem: str) -> None:
        raise reader.fail(name, problem)

    if config.d_model % (2 * config.num_heads):
        refuse(
            "n_heads",
            f"is {config.num_heads}, which does not divide d_model {config.d_model} into heads of an even width.",
        )
    if config.num_heads % config.num_kv_heads:
        refuse("n_kv_heads", f"is {config.num_kv_heads}, which does not divide n_heads {config.num_heads}.")
    if config.native_top_k > config.num_experts:
        refuse("moe_top_k", f"is {config.native_top_k}, more than the {config.num_experts} experts.")
    if config.feed_forward_width % 2:
        refuse("mlp_hidden_size", f"is {config.feed_forward_width}, which is odd: an expert has half that width.")
    if config.embedding_size < config.vocab_size:
        refuse("embedding_size", f"is {config.embedding_size}, less than vocab_size {config.vocab_size}.")
    rows, columns = config.vision.patch_grid
    for name, pooling, patches in (
        ("image_pooling_h", config.pooling_height, rows),
        ("image_pooling_w", config.pooling_width, columns),
    ):
        if patches % pooling:
            refuse(name, f"is {pooling}, which does not divide the {patches} patches of a crop.")
        if any(margin % pooling for margin in config.overlap_margins):
            refuse("overlap_margins", f"is {config.overlap_margins}, not divisible by {name} {pooling}.")
    if min(config.window_patches) < 1:
        refuse("overlap_margins", f"is {config.overlap_margins}, which leaves none of the {rows} x {columns} patches.")
    for index in config.vit_layers:
        if not -config.vision.num_layers <= index < config.vision.num_layers:
            refuse("vit_layers", f"names layer {index}, and there are {config.vision.num_layers}.")
