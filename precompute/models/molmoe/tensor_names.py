"""The place in the model of each tensor of the published layout.

Experts, published one by one, are stacked here; the two embedding tables are one parameter, and so are the weights of
q_norm and k_norm. All other tensors correspond one to one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .model import Molmoe


@dataclass(frozen=True)
class Target:
    """A published tensor's place: a parameter, or a rectangular part of it that `part` selects."""

    parameter: Tensor
    part: tuple[int | slice, ...] = ()

    @property
    def view(self) -> Tensor:
        """A view of the parameter, which may be on the meta device: writing to it writes to the parameter."""
        return self.parameter.detach()[self.part] if self.part else self.parameter.detach()


def published_tensors(model: Molmoe) -> dict[str, Target]:
    """Returns the place in `model` of every published tensor, by name; together they cover each weight once."""
    return dict(_targets(model))


def _targets(model: Molmoe) -> Iterator[tuple[str, Target]]:
    config = model.config
    text = "model.transformer"
    first_table = config.embedding_size
    yield f"{text}.wte.embedding", Target(model.embedding.weight, (slice(None, first_table),))
    yield f"{text}.wte.new_embedding", Target(model.embedding.weight, (slice(first_table, None),))
    block: Any
    for index, block in enumerate(model.blocks):
        prefix = f"{text}.blocks.{index}"
        yield f"{prefix}.attn.attn_norm.weight", Target(block.attn_norm.weight)
        yield f"{prefix}.attn.att_proj.weight", Target(block.attn.att_proj.weight)
        yield f"{prefix}.attn.q_norm.weight", Target(block.attn.qk_norm_weight, (slice(None, config.d_model),))
        yield f"{prefix}.attn.k_norm.weight", Target(block.attn.qk_norm_weight, (slice(config.d_model, None),))
        yield f"{prefix}.attn.attn_out.weight", Target(block.attn.attn_out.weight)
        yield f"{prefix}.mlp.ff_norm.weight", Target(block.ff_norm.weight)
        yield f"{prefix}.mlp.gate.weight", Target(block.mlp.router.weight)
        experts = block.mlp.experts
        width = config.expert_width
        for expert in range(config.num_experts):
            name = f"{prefix}.mlp.experts.{expert}"
            yield f"{name}.gate_proj.weight", Target(experts.gate_up_proj, (expert, slice(None, width)))
            yield f"{name}.up_proj.weight", Target(experts.gate_up_proj, (expert, slice(width, None)))
            yield f"{name}.down_proj.weight", Target(experts.down_proj, (expert,))
    yield f"{text}.ln_f.weight", Target(model.final_norm.weight)
    yield "lm_head.weight", Target(model.lm_head.weight)
    yield from _vision_targets(model)


_VIT_LAYER_PARTS = {
    "attention_norm": "layer_norm1",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.out_proj",
    "ffn_norm": "layer_norm2",
    "feed_forward.w1": "mlp.fc1",
    "feed_forward.w2": "mlp.fc2",
}


def _vision_targets(model: Molmoe) -> Iterator[tuple[str, Target]]:
    backbone: Any = model.vision_backbone
    prefix = "model.vision_backbone"
    vit: Any = backbone.image_vit
    yield f"{prefix}.image_vit.class_embedding", Target(vit.class_embedding)
    yield f"{prefix}.image_vit.positional_embedding", Target(vit.positional_embedding)
    yield f"{prefix}.image_vit.patch_embedding.weight", Target(vit.patch_embedding.weight)
    yield from _weight_and_bias(f"{prefix}.image_vit.pre_ln", vit.pre_ln)
    for index, layer in enumerate(vit.layers):
        for published, own in _VIT_LAYER_PARTS.items():
            yield from _weight_and_bias(
                f"{prefix}.image_vit.transformer.resblocks.{index}.{published}", layer.get_submodule(own)
            )
    yield f"{prefix}.pad_embed", Target(backbone.pad_embed)
    for name in ("wq", "wk", "wv", "wo"):
        yield from _weight_and_bias(f"{prefix}.image_pooling_2d.{name}", getattr(backbone.image_pooling_2d, name))
    for name in ("w1", "w2", "w3"):
        yield f"{prefix}.image_projector.{name}.weight", Target(getattr(backbone.image_projector, name).weight)


def _weight_and_bias(prefix: str, module: nn.Module) -> Iterator[tuple[str, Target]]:
    yield f"{prefix}.weight", Target(module.get_parameter("weight"))
    yield f"{prefix}.bias", Target(module.get_parameter("bias"))
