"""nano's initial weights: drawn from a seed, with each layer scaled to its inputs."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import nn
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from ...precompute.models.molmoe.config import MolmoeConfig, VisionConfig
from ...precompute.models.molmoe.model import Molmoe
from ...precompute.models.molmoe.text import TextBlock
from ...precompute.models.molmoe.vision import VisionTower

EMBEDDING_STD = 0.2
"""Word embeddings are large compared with router and head weights, so that the words in a sum stay separable."""

POSITION_FREQUENCIES = (0.4, 0.9, 1.8)
"""Radians per patch: wavelengths of two crops, one crop and half a crop."""
POSITION_SCALE = 1.5
ATTENTION_SCALE = 1.7
NEIGHBOURS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))


def initial_model(config: MolmoeConfig, seed: int) -> Molmoe:
    """Returns a model for training, with every expert computed (`dense`)."""
    model = Molmoe(config, experts_implementation="dense").init_weights(seed)
    generator = torch.Generator().manual_seed(seed + 1)

    def draw(weight: torch.Tensor, std: float) -> None:
        weight.copy_(torch.randn(weight.shape, generator=generator) * std)

    with torch.no_grad():
        draw(model.embedding.weight, EMBEDDING_STD)
        draw(model.lm_head.weight, 1 / math.sqrt(config.d_model))
        for module in model.blocks:
            block = cast(TextBlock, module)
            for linear in (block.attn.att_proj, block.attn.attn_out):
                draw(linear.weight, 1 / math.sqrt(config.d_model))
            block.attn.attn_out.weight.mul_(1 / math.sqrt(2 * config.num_blocks))
            draw(block.mlp.experts.gate_up_proj, 1 / math.sqrt(config.d_model))
            # Each of eight experts has a weight of about 1/16: without the factor of 8, blocks would do little.
            draw(block.mlp.experts.down_proj, 8 / math.sqrt(2 * config.num_blocks * config.expert_width))
        for module in model.vision_backbone.modules():
            if isinstance(module, nn.Linear):
                draw(module.weight, 1 / math.sqrt(module.in_features))
        _start_as_convolution(model.vision_backbone.image_vit, config.vision)
    return model


def _start_as_convolution(tower: VisionTower, vision: VisionConfig) -> None:
    """Sets positions and attention so that each head attends to one neighbour of a patch, like a 3 x 3 kernel.

    Positions are sines and cosines in the first entries of the embedding, which patches leave at zero. A query is the
    position rotated by the head's offset, a key the position itself. With random weights, the tower could not tell
    digits apart after 300 steps.
    """
    head_width = vision.width // vision.num_heads
    frequencies = torch.tensor(POSITION_FREQUENCIES)
    assert 4 * len(frequencies) == head_width, "sines and cosines of two axes fill a head"
    rows, columns = vision.patch_grid
    grid = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).float()  # [P, 2]
    angle = grid.unsqueeze(-1) * frequencies  # [P, 2, F]
    code = torch.stack([angle.cos(), angle.sin()], dim=-1).flatten(1)  # [P, 4F]: axis, frequency, cosine or sine
    tower.positional_embedding[:, :head_width] = 0
    tower.positional_embedding[1:, :head_width] = POSITION_SCALE * code
    tower.patch_embedding.weight[:head_width] = 0
    for depth, module in enumerate(tower.layers):
        attention = cast(CLIPEncoderLayer, module).self_attn
        reach = 2 if depth == 1 else 1
        for head in range(vision.num_heads):
            offset = torch.tensor(NEIGHBOURS[head % len(NEIGHBOURS)]) * float(reach)
            shift = (offset.unsqueeze(-1) * frequencies).flatten()  # [2F]
            rotations = [torch.tensor([[c, -s], [s, c]]) for c, s in zip(shift.cos(), shift.sin(), strict=True)]
            own = slice(head * head_width, (head + 1) * head_width)
            attention.q_proj.weight[own, :head_width] = ATTENTION_SCALE * torch.block_diag(*rotations)
            attention.k_proj.weight[own, :head_width] = ATTENTION_SCALE * torch.eye(head_width)
            attention.q_proj.weight[own, head_width:] *= 0.1
            attention.k_proj.weight[own, head_width:] *= 0.1
