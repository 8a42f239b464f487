"""The function through which the engine runs a block under a plan, and the caches it runs on.

Token pass, answer sweep, one setting alone, timing and importance go through `run_block`. It takes rows of equal length
and may take another top-k for each row, so that plans which differ only in top-k run side by side. It has two bodies:
the model's own block, and a second one for a top-k per row or a tie watch, whose equality is tested.

Shapes: R rows, S positions of this call, H key/value heads, W head width, D d_model, E experts, k experts used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import Cache

from .molmoe.model import Molmoe
from .molmoe.text import rotate

Rotary = tuple[Tensor, Tensor]  # cosines and sines of `Molmoe.position_embeddings`

# Two experts whose probabilities lie closer than this at the cut may change places from one batch shape to another.
ROUTER_TIE = 1e-7


class PromptCache(Cache):
    """Keys and values of one pass over whole prompts, kept by block. Nothing lies in front of them."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.keys: dict[int, Tensor] = {}  # [R, H, S, W]
        self.values: dict[int, Tensor] = {}

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        """Keeps this call's keys and values and returns them."""
        self.keys[layer_idx], self.values[layer_idx] = key_states, value_states
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002  transformers' signature
        """Zero: a prompt is run in one pass."""
        return 0


class StepCache(Cache):
    """Keys and values of one block with room for new ones behind them: what a decoding step reads and extends.

    A step writes at place `length` and reads up to there. It is told the place by its caller, because blocks that are
    skipped are not called and so cannot count.
    """

    def __init__(self, keys: Mapping[int, Tensor], values: Mapping[int, Tensor], length: int) -> None:
        super().__init__(layers=[])
        self.keys, self.values, self.length = dict(keys), dict(values), length  # [R, H, capacity, W]

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        """Writes the step's keys and values [R, H, 1, W] in place; returns all up to and with them."""
        keys, values, end = self.keys[layer_idx], self.values[layer_idx], self.length + 1
        keys[:, :, self.length : end], values[:, :, self.length : end] = key_states, value_states
        return keys[:, :, :end], values[:, :, :end]

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002  transformers' signature
        """How many positions lie in the cache."""
        return self.length

    def keep_rows(self, index: Tensor) -> None:
        """Drops every row but `index` [rows kept]."""
        for store in (self.keys, self.values):
            for block, tensor in store.items():
                store[block] = tensor[index]


@dataclass
class TieWatch:
    """Which rows met a tie of the router, and so may answer otherwise in a batch of another shape."""

    tied_R: Tensor | None = field(default=None)

    def see(self, probability_RSk: Tensor, top_k: int | Tensor) -> None:
        """Looks at the sorted probabilities: is the last expert taken as likely as the first one left out?"""
        gap_RSk = probability_RSk[..., :-1] - probability_RSk[..., 1:]
        if isinstance(top_k, int):
            gap_RS = gap_RSk[..., top_k - 1]
        else:
            gap_RS = gap_RSk.gather(-1, (top_k - 1).view(-1, 1, 1).expand(*gap_RSk.shape[:2], 1)).squeeze(-1)
        tied_R = (gap_RS < ROUTER_TIE).any(dim=-1)
        self.tied_R = tied_R if self.tied_R is None else self.tied_R | tied_R


def run_block(
    model: Molmoe,
    index: int,
    hidden_RSD: Tensor,
    top_k: int | Tensor,
    rotary: Rotary,
    *,
    attention_mask: Tensor | None = None,
    cache: Cache | None = None,
    watch: TieWatch | None = None,
) -> Tensor:
    """Runs one block and returns [R, S, D]. A plan's skipped block (top-k 0) is the caller's not to run.

    Args:
        top_k: experts per token, for all rows, or [R] int64 on the CPU, one for each row.
        watch: told of the router's probabilities. Watching does not change the result.
    """
    if watch is None and isinstance(top_k, int):
        return model.run_block(
            index, hidden_RSD, top_k=top_k, position_embeddings=rotary, attention_mask=attention_mask, cache=cache
        )
    block: Any = model.blocks[index]
    hidden_RSD = hidden_RSD + block.attn(block.attn_norm(hidden_RSD), rotary, attention_mask, cache)
    normed_RSD = block.ff_norm(hidden_RSD)
    if isinstance(top_k, int):
        largest = top_k
    else:
        largest = int(top_k.max())  # on the CPU, so that nothing waits for the device
        top_k = top_k.to(hidden_RSD.device)
    num_experts = model.config.num_experts
    probability_RSE = torch.softmax(block.mlp.router(normed_RSD), dim=-1, dtype=torch.float32)
    chosen_RSk, expert_RSk = probability_RSE.topk(min(largest + 1, num_experts), dim=-1)
    if watch is not None:
        if largest == num_experts:  # nothing is left out, so nothing can tie with it
            chosen_RSk = functional.pad(chosen_RSk, (0, 1), value=-1.0)
        watch.see(chosen_RSk, top_k)
    weight_RSk, expert_RSk = chosen_RSk[..., :largest], expert_RSk[..., :largest]
    if not isinstance(top_k, int):  # experts beyond a row's own k weigh nothing: the sum is the row's own, exactly
        weight_RSk = weight_RSk * (torch.arange(largest, device=top_k.device) < top_k.view(-1, 1, 1))
    mixed = block.mlp.experts(
        normed_RSD.flatten(0, 1),
        expert_RSk.flatten(0, 1).contiguous(),
        weight_RSk.flatten(0, 1).to(normed_RSD.dtype).contiguous(),
    )
    return hidden_RSD + mixed.view_as(hidden_RSD)


def prompt_keys_values(model: Molmoe, index: int, hidden_RSD: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
    """Returns a block's keys and values [R, H, S, W] without running it.

    A plan's last block needs them at every position, and everything else at the last position only.
    """
    block: Any = model.blocks[index]
    attention = block.attn
    query_width, key_width, value_width = attention.widths
    weight = attention.att_proj.weight[query_width:]
    key, value = functional.linear(block.attn_norm(hidden_RSD), weight).split([key_width, value_width], dim=-1)
    heads = (*hidden_RSD.shape[:-1], -1, attention.head_width)
    return rotate(attention.k_norm(key).view(heads), rotary).transpose(1, 2), value.view(heads).transpose(1, 2)


def with_room(prompt_RHSW: Tensor, room: int) -> Tensor:
    """Returns a copy [R, H, S + room, W] whose last places are still to be written."""
    rows, heads, length, width = prompt_RHSW.shape
    store = prompt_RHSW.new_empty(rows, heads, length + room, width)
    store[:, :, :length] = prompt_RHSW
    return store
