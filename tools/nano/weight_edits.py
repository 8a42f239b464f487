"""Edits of a decoder's weights that spread its work over all blocks and experts, so that each one matters.

After the lookups were learned, the last blocks had no effect and four experts were as good as eight, so neither knob
would have mattered. Training continues after the edit and recovers the accuracy.
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
    """Rearranges the blocks: unused ones are dropped, others are repeated.

    Each copy of a block that occurs twice adds half of its update, so the model computes nearly the same as before.

    Args:
        order: index of the source block for each place.
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
    """Limits router rows to `max_norm` and scales the experts' output by `gain` to compensate for the flatter routing.

    With equal weights, four of sixteen experts contribute half as much as eight.
    """
    bound_routers(model, max_norm)
    with torch.no_grad():
        for module in model.blocks:
            cast(TextBlock, module).mlp.experts.down_proj.mul_(gain)


def narrow_experts(model: Molmoe, width: int) -> None:
    """Keeps the `width` most important neurons of each expert and sets the others to zero for good.

    The importance of a neuron is the product of the norms of its three weight vectors. A neuron with all weights zero
    has zero gradient. The matrices keep their shape, because in the published architecture experts and image projector
    have the same width.
    """
    with torch.no_grad():
        for module in model.blocks:
            experts = cast(TextBlock, module).mlp.experts
            gate, up = experts.gate_up_proj.chunk(2, dim=1)  # [E, W, D] each
            importance_EW = gate.norm(dim=2) * up.norm(dim=2) * experts.down_proj.norm(dim=1)
            kept_EW = torch.zeros_like(importance_EW).scatter(1, importance_EW.topk(width, dim=1).indices, 1.0)
            experts.gate_up_proj.mul_(torch.cat([kept_EW, kept_EW], dim=1).unsqueeze(2))
            experts.down_proj.mul_(kept_EW.unsqueeze(1))
