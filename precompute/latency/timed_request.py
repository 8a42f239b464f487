"""One request as it is timed: pixels on the device in, answer tokens out, at batch 1, with marks on the way.

The prompt carries one probe row up to the insertion position, where the latency token is read, as a controlled request
does. Latencies of the cache and of the live executor are both times of this function.

Shapes: S prompt positions, D d_model.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...data.plans import BlockPlan
from ..execution.knob_model import KnobModel, PreparedPrompt
from ..execution.kv_cache import RequestCache

# A mark names what has just ended: a stage, or a block.
Mark = Callable[[str | int], None]
START, VISION, READ, HEAD, STEP = "start", "vision", "read", "head", "step"


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
            hidden = model.run_block(block, hidden, top_k=top_k, position_embeddings=rotary, cache=cache)
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
                hidden = model.run_block(block, hidden, top_k=top_k, position_embeddings=rotary, cache=cache)
                mark(block)
        token = int(model.logits(hidden).argmax())
        mark(STEP)
        tokens.append(token)
    return tuple(tokens)
