"""The training forward pass of a packed batch under a plan, its losses, and the plans drawn in training.

Runs the model's own blocks, compiled, with linear layers in bfloat16 and attention in float32, because the backward
pass of bfloat16 attention is several times slower on the CPU.

Shapes: B images, T positions, A positions that predict a token of an answer, D d_model.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ...precompute.models.molmoe.model import Molmoe
from ...precompute.models.molmoe.text import TextBlock
from .batches import IGNORED, Batch

Plan = tuple[int, ...]  # experts per token of every block, 0 where it is skipped

FIRST_DROPPABLE = 5
"""Blocks before this one are never dropped in training: the largest insertion position, up to which all blocks run."""


def _float32_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    with torch.autocast("cpu", enabled=False):
        mixed, weights = sdpa_attention_forward(
            module, query.float(), key.float(), value.float(), attention_mask, **options
        )
    return mixed.to(query.dtype), weights


def prepare_for_training(model: Molmoe, *, compiled: bool) -> None:
    """Speeds up training in this process: attention in float32, blocks compiled."""
    ALL_ATTENTION_FUNCTIONS["sdpa"] = _float32_attention
    if compiled:
        torch._dynamo.config.recompile_limit = 64
        run = torch.compile(TextBlock.forward, dynamic=False)
        for module in model.blocks:
            module.forward = partial(run, cast(TextBlock, module))


def encode(model: Molmoe, batch: Batch, *, bfloat16: bool) -> Tensor:
    """Returns the image features [B, N, Q, D]."""
    with torch.autocast("cpu", torch.bfloat16) if bfloat16 else nullcontext():
        return model.encode_images(batch.crops, batch.masks).float()


def answer_logits(model: Molmoe, batch: Batch, features: Tensor, plan: Plan, *, bfloat16: bool) -> Tensor:
    """Returns the logits [A, V] at the positions that predict answers, in row order of `batch.labels`."""
    hidden = final_hidden(model, batch, features, plan, bfloat16=bfloat16)
    return model.logits(hidden[batch.labels != IGNORED].unsqueeze(0))[0]


def final_hidden(model: Molmoe, batch: Batch, features: Tensor, plan: Plan, *, bfloat16: bool) -> Tensor:
    """Returns the last block's output [B, T, D]."""
    index_BNQ = batch.image_input_idx.reshape(features.shape[:3])  # ideal features have a single crop
    hidden = model.embed(batch.input_ids, features, index_BNQ)
    rotary = model.position_embeddings(batch.position_ids)
    with torch.autocast("cpu", torch.bfloat16) if bfloat16 else nullcontext():
        for index, top_k in enumerate(plan):
            if top_k:
                hidden = model.run_block(
                    index, hidden, top_k=top_k, attention_mask=batch.attention_mask, position_embeddings=rotary
                )
    return hidden


def answer_loss(model: Molmoe, hidden: Tensor, batch: Batch) -> Tensor:
    """Returns the mean cross-entropy of the answer tokens, including end tokens."""
    return _cross_entropy(model, hidden, batch.labels)


def hint_loss(model: Molmoe, hidden: Tensor, batch: Batch) -> Tensor:
    """Returns the mean cross-entropy of the hints: question words that refer to a card should predict its number.

    The outputs at these words are otherwise unused. Reading by colour takes two lookups, and the hints teach the first
    one directly.
    """
    return _cross_entropy(model, hidden, batch.hints)


def _cross_entropy(model: Molmoe, hidden: Tensor, labels: Tensor) -> Tensor:
    is_asked = labels != IGNORED
    return functional.cross_entropy(model.logits(hidden[is_asked].unsqueeze(0))[0], labels[is_asked])


def full_plan(model: Molmoe) -> Plan:
    """Returns the plan that runs every block with the native top-k."""
    return (model.config.native_top_k,) * model.config.num_blocks


def draw_plan(
    model: Molmoe,
    rng: random.Random,
    *,
    fewer_experts: float,
    fewer_blocks: float,
    top_ks: Sequence[int] = (4, 6),
    droppable: Sequence[int] = (),
) -> Plan:
    """Draws a plan for one step.

    Args:
        fewer_experts: share of steps in which the blocks after a random insertion position run with one of `top_ks`.
        fewer_blocks: share of steps in which one to four of the `droppable` blocks are left out.
        droppable: blocks that may be left out; empty means all after the fifth.
    """
    plan = list(full_plan(model))
    if rng.random() < fewer_experts:
        position, top_k = rng.randint(1, FIRST_DROPPABLE), rng.choice(top_ks)
        plan[position:] = [top_k] * (len(plan) - position)
    if rng.random() < fewer_blocks:
        for index in rng.sample(droppable or range(FIRST_DROPPABLE, len(plan)), k=rng.randint(1, 4)):
            plan[index] = 0
    return tuple(plan)


def bound_routers(model: Molmoe, max_norm: float) -> None:
    """Scales router rows down to a norm of at most `max_norm`.

    This keeps routing flat, so that the experts ranked fifth to eighth contribute to each token's update. Otherwise the
    router puts nearly all weight on a few experts, and a smaller top-k has no effect.
    """
    with torch.no_grad():
        for module in model.blocks:
            weight = cast(TextBlock, module).mlp.router.weight
            weight.mul_((max_norm / weight.norm(dim=1, keepdim=True)).clamp(max=1.0))
