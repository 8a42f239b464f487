"""One request as it is timed: pixels on the device in, answer tokens out, at batch 1, with marks on the way.

The prompt carries one probe row up to the insertion position, where the latency token is read, as a controlled request
does. Latencies of the cache and of the live executor are both times of this function.

Shapes: S prompt positions, D d_model, H key/value heads, W head width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from ..data.plans import BlockPlan
from .knob_model import KnobModel, PreparedPrompt
from .passes import run_block

# A mark names what has just ended: a stage, or a block.
Mark = Callable[[str | int], None]
START, VISION, READ, HEAD, STEP = "start", "vision", "read", "head", "step"


class RequestCache(Cache):
    """Keys and values of one request, each block's with room for the answer: a step writes in place."""

    def __init__(self, length: int, room: int) -> None:
        super().__init__(layers=[])
        self._capacity = length + room
        self.length = length  # positions of the prompt, then of prompt and answer; a probe behind them is not kept
        self._is_prompt = True
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        """Keeps the prompt's keys and values [1, H, S (+ 1), W], or writes a step's and returns all so far."""
        if self._is_prompt:
            self._keys[layer_idx] = self._kept(key_states)
            self._values[layer_idx] = self._kept(value_states)
            return key_states, value_states
        keys, values = self._keys[layer_idx], self._values[layer_idx]
        keys[:, :, self.length - 1 : self.length] = key_states
        values[:, :, self.length - 1 : self.length] = value_states
        return keys[:, :, : self.length], values[:, :, : self.length]

    def begin_step(self) -> None:
        """Makes room for one more position."""
        self._is_prompt = False
        self.length += 1

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002  transformers' signature
        """How many positions lie in front of this call's."""
        return 0 if self._is_prompt else self.length - 1

    def _kept(self, states: Tensor) -> Tensor:
        store = states.new_empty(*states.shape[:2], self._capacity, states.shape[-1])
        store[:, :, : self.length] = states[:, :, : self.length]
        return store


def ignore_mark(name: str | int) -> None:
    """Marks nothing."""


@torch.inference_mode()
def run_request(
    knobs: KnobModel,
    prepared: PreparedPrompt,
    plan: BlockPlan,
    position: int,
    probe_D: Tensor,
    *,
    num_tokens: int,
    mark: Mark = ignore_mark,
) -> tuple[int, ...]:
    """Runs one request and returns its `num_tokens` answer tokens. An end token does not end it: the caller knows.

    Args:
        position: blocks that the probe goes through before it is read; 0 leaves the probe out.
        mark: called with START; VISION; the number of each block that ran, and READ after the token was read; HEAD;
            and for every further token with the numbers of its blocks and STEP.
    """
    model = knobs.model
    length = prepared.length
    mark(START)
    hidden = knobs.embed(prepared)
    mark(VISION)
    if position:
        hidden = torch.cat([hidden, probe_D[None, None]], dim=1)
    rotary = model.position_embeddings(torch.arange(hidden.shape[1], device=hidden.device)[None])
    cache = RequestCache(length, num_tokens - 1)
    for block, top_k in enumerate((*plan, 0)):  # one turn more, for a position behind the last block
        if position and block == position:
            hidden[0, -1].half().cpu()  # what Stage2 reads; it waits for the device, as Stage2 would
            hidden = hidden[:, :-1]
            rotary = (rotary[0][:, :-1], rotary[1][:, :-1])
            mark(READ)
        if top_k:
            hidden = run_block(model, block, hidden, top_k, rotary, cache=cache)
            mark(block)
    token = int(model.logits(hidden[:, -1:]).argmax())
    mark(HEAD)
    tokens = [token]
    while len(tokens) < num_tokens:
        cache.begin_step()
        hidden = model.word_embeddings(torch.tensor([[token]], device=hidden.device))
        rotary = model.position_embeddings(torch.tensor([[cache.length - 1]], device=hidden.device))
        for block, top_k in enumerate(plan):
            if top_k:
                hidden = run_block(model, block, hidden, top_k, rotary, cache=cache)
                mark(block)
        token = int(model.logits(hidden).argmax())
        mark(STEP)
        tokens.append(token)
    return tuple(tokens)
