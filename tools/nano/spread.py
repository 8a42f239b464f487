"""Spreads a decoder's work over all of its blocks and experts, so that leaving some out costs something.

After the look-ups were learned the last blocks did nothing, and four experts served as well as eight: neither knob
would have mattered. Training goes on after this change and mends what it costs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import cast

import torch

from ...precompute.models.molmoe.model import Molmoe
from ...precompute.models.molmoe.text import TextBlock
from .forward import bound_routers


def repeat_blocks(model: Molmoe, order: Sequence[int]) -> None:
    """Puts the blocks in a new order, in which idle ones are missing and others stand several times.

    A block that stands twice adds half of its update each time, so that the model as a whole does nearly what it did.

    Args:
        order: for each place the block that takes it.
    """
    assert len(order) == len(model.blocks), "one block for each place"
    times = Counter(order)
    sources = [{name: value.clone() for name, value in block.state_dict().items()} for block in model.blocks]
    for place, source in enumerate(order):
        block = cast(TextBlock, model.blocks[place])
        block.load_state_dict(sources[source])
        with torch.no_grad():
            block.attn.attn_out.weight.div_(times[source])
            block.mlp.experts.down_proj.div_(times[source])


def flatten_routing(model: Molmoe, max_norm: float, gain: float) -> None:
    """Holds router rows to `max_norm` and makes experts louder by `gain`, for what the flatter routing takes away.

    With equal shares four experts of sixteen say half of what eight say.
    """
    bound_routers(model, max_norm)
    with torch.no_grad():
        for module in model.blocks:
            cast(TextBlock, module).mlp.experts.down_proj.mul_(gain)


def narrow_experts(model: Molmoe, width: int) -> None:
    """Leaves each expert its `width` most telling neurons and sets the rest to zero, where they stay.

    A neuron tells by the product of its three weights' lengths. One whose weights are all zero has no gradient either.
    The matrices keep their shape, because the published architecture gives experts and image projector one width.
    """
    with torch.no_grad():
        for module in model.blocks:
            experts = cast(TextBlock, module).mlp.experts
            gate, up = experts.gate_up_proj.chunk(2, dim=1)  # [E, W, D] each
            telling_EW = gate.norm(dim=2) * up.norm(dim=2) * experts.down_proj.norm(dim=1)
            kept_EW = torch.zeros_like(telling_EW).scatter(1, telling_EW.topk(width, dim=1).indices, 1.0)
            experts.gate_up_proj.mul_(torch.cat([kept_EW, kept_EW], dim=1).unsqueeze(2))
            experts.down_proj.mul_(kept_EW.unsqueeze(1))
