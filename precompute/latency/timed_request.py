"""One whole request: from pixels on the device to the answer's tokens, at batch 1, with marks on the way.

The prompt carries one probe row up to the insertion position, where the latency token is read. Every latency, in a
cache or of a live run, is measured with this function, under a plan that is known before; `serving/engine.py` answers
with it, and decides the rest of the plan where the token is read.

Shapes: S prompt positions, D d_model.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...data.plans import BlockPlan
from ..execution.knob_model import KnobModel
from ..execution.request_decoder import Mark, OnToken, RequestDecoder, ignore_mark
from ..models.backbone import Prompt

# The stages that end before the first token; after it, `request_decoder.STEP`.
START, VISION, READ, DECIDE, HEAD = "start", "vision", "read", "decide", "head"

Decide = Callable[[NDArray[np.float16]], BlockPlan]  # latency token [D] -> plan


def decoder_for(knobs: KnobModel, prepared: Prompt, num_tokens: int) -> RequestDecoder:
    """Returns a decoder with room for the prompt, a probe and an answer of `num_tokens`."""
    return RequestDecoder(knobs.model, prepared.length + num_tokens)


@torch.inference_mode()
def run_request(
    knobs: KnobModel,
    prepared: Prompt,
    plan: BlockPlan,
    position: int,
    probe_D: Tensor,
    *,
    num_tokens: int,
    decoder: RequestDecoder,
    decide: Decide | None = None,
    ends: bool = False,
    mark: Mark = ignore_mark,
    on_token: OnToken | None = None,
) -> tuple[int, ...]:
    """Runs one request and returns its answer tokens.

    Args:
        position: blocks that the probe passes before it is read; 0 leaves the probe out.
        num_tokens: number of answer tokens; with `ends`, an end token may end the answer before.
        decide: returns the plan of the blocks after `position`; None: they run under `plan` too.
        decoder: from `decoder_for`, so that no memory is allocated for keys and values while the clock runs.
        mark: called with START; VISION; the number of each block that ran, READ after the token was read, and DECIDE
            after `decide`; HEAD; and for every further token with the numbers of its blocks and STEP.
        on_token: receives each token as soon as it is known.
    """
    model = knobs.model
    mark(START)
    prompt = knobs.embed(prepared)
    mark(VISION)
    hidden = prompt.hidden_1SD
    if position:
        hidden = torch.cat([hidden, probe_D[None, None]], dim=1)
    places = model.positions(prompt, 0, prompt.length, probes=1 if position else 0)
    states = decoder.new_prompt()
    for block in range(len(plan) + 1):  # one more iteration, for a position after the last block
        if position and block == position:
            token_D = hidden[0, -1].half().cpu()  # what Stage2 reads; waits for the device, as Stage2 does
            hidden = hidden[:, :-1]
            places = model.positions(prompt, 0, prompt.length)
            mark(READ)
            if decide is not None:
                plan = decide(token_D.numpy())
                mark(DECIDE)
        top_k = plan[block] if block < len(plan) else 0
        if top_k:
            hidden = model.run_block(block, hidden, top_k=top_k, positions=places, state=states[block])
            mark(block)
        elif block < len(plan):
            hidden = model.skip_block(block, hidden, places)
    token = int(model.logits(hidden[:, -1:]).argmax())
    mark(HEAD)
    return decoder.decode(
        prompt, plan, first_token=token, max_new_tokens=num_tokens, ends=ends, mark=mark, on_token=on_token
    )
