"""Plain greedy decoding of a padded batch under one plan: the reference for the product's decoders.

Shapes: B batch, T text positions, S positions of one pass, KV cached and new positions, D d_model, V logits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache, DynamicCache

from knobctl.data.plans import BlockPlan
from knobctl.precompute.models.molmoe.model import Molmoe

PADDING_ID = -1


@dataclass(frozen=True)
class ModelInputs:
    """A batch, padded with -1: ids, pixels, masks and indices alike."""

    input_ids: Tensor  # [B, T]
    crops: Tensor | None = None  # [B, N, P, 3 * patch * patch]
    masks: Tensor | None = None  # [B, N, P]
    image_input_idx: Tensor | None = None  # [B, N, Q]


def real_positions(input_ids: Tensor) -> Tensor:
    """Returns [B, T] bool: which positions are not padding."""
    return input_ids != PADDING_ID


def position_ids_of(is_real_BT: Tensor) -> Tensor:
    """Returns position ids [B, T]: real positions counted from 0, padding aside."""
    return (is_real_BT.long().cumsum(dim=-1) - 1).clamp(min=0)


def causal_mask(is_real_BK: Tensor, num_queries: int, dtype: torch.dtype) -> Tensor:
    """Returns the additive mask [B, 1, S, KV] of the last `num_queries` slots: no look ahead and none at padding.

    What is hidden gets the most negative finite number, so that a row that sees nothing stays finite.
    """
    num_slots = is_real_BK.shape[1]
    slot = torch.arange(num_slots, device=is_real_BK.device)
    is_past_SK = slot <= slot[num_slots - num_queries :].unsqueeze(1)
    is_seen = is_past_SK & is_real_BK[:, None, None, :]
    hidden = torch.zeros(is_seen.shape, dtype=dtype, device=is_seen.device)
    return hidden.masked_fill(~is_seen, torch.finfo(dtype).min)


def embed_inputs(model: Molmoe, inputs: ModelInputs) -> Tensor:
    """Returns the first block's input [B, T, D]."""
    features = None
    if inputs.crops is not None and inputs.masks is not None:
        features = model.encode_images(inputs.crops, inputs.masks)
    return model.embed(inputs.input_ids, features, inputs.image_input_idx)


def run_blocks(
    model: Molmoe,
    hidden: Tensor,
    plan: BlockPlan,
    *,
    position_ids: Tensor,
    attention_mask: Tensor | None,
    cache: Cache | None = None,
) -> Tensor:
    """Runs every block that `plan` does not skip on hidden [B, S, D]."""
    if len(plan) != model.config.num_blocks:
        raise ValueError(f"the plan names {len(plan)} blocks and the model has {model.config.num_blocks}")
    position_embeddings = model.position_embeddings(position_ids)
    for index, top_k in enumerate(plan):
        if top_k:
            hidden = model.run_block(
                index,
                hidden,
                top_k=top_k,
                attention_mask=attention_mask,
                cache=cache,
                position_embeddings=position_embeddings,
            )
    return hidden


def forward_logits(model: Molmoe, inputs: ModelInputs, plan: BlockPlan) -> Tensor:
    """Returns the logits [B, T, V] of one pass without a cache."""
    is_real = real_positions(inputs.input_ids)
    hidden = embed_inputs(model, inputs)
    mask = causal_mask(is_real, is_real.shape[1], hidden.dtype)
    hidden = run_blocks(model, hidden, plan, position_ids=position_ids_of(is_real), attention_mask=mask)
    return model.logits(hidden)


@torch.inference_mode()
def generate(
    model: Molmoe, inputs: ModelInputs, plan: BlockPlan, *, max_new_tokens: int, end_id: int | None, pad_id: int
) -> Tensor:
    """Greedy decoding of a batch under one plan.

    Args:
        end_id: a row that produced it is filled with `pad_id`; None decodes `max_new_tokens` whatever comes.

    Returns:
        New token ids [B, at most max_new_tokens], the end token included.
    """
    is_real = real_positions(inputs.input_ids)
    lengths_B1 = is_real.sum(dim=-1, keepdim=True)
    cache = DynamicCache()
    hidden = embed_inputs(model, inputs)
    mask = causal_mask(is_real, is_real.shape[1], hidden.dtype)
    hidden = run_blocks(model, hidden, plan, position_ids=position_ids_of(is_real), attention_mask=mask, cache=cache)
    slot = torch.arange(is_real.shape[1], device=is_real.device)
    last_B = torch.where(is_real, slot, -1).amax(dim=-1).clamp(min=0)
    last_B1D = hidden[torch.arange(len(last_B), device=hidden.device), last_B].unsqueeze(1)
    token_B1 = model.logits(last_B1D).argmax(dim=-1)
    tokens = [token_B1]
    is_done_B1 = torch.zeros_like(token_B1, dtype=torch.bool)
    while len(tokens) < max_new_tokens:
        if end_id is not None:
            is_done_B1 = is_done_B1 | (tokens[-1] == end_id)
            if bool(is_done_B1.all()):
                break
        is_real = torch.cat([is_real, torch.ones_like(is_done_B1)], dim=-1)
        hidden = run_blocks(
            model,
            model.word_embeddings(tokens[-1]),
            plan,
            position_ids=lengths_B1 + len(tokens) - 1,
            attention_mask=causal_mask(is_real, 1, hidden.dtype),
            cache=cache,
        )
        tokens.append(model.logits(hidden).argmax(dim=-1).masked_fill(is_done_B1, pad_id))
    return torch.cat(tokens, dim=-1)
