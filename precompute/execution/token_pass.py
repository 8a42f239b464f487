"""The token pass: runs the prompt and one probe per budget through the blocks up to the last insertion position.

A probe attends to the prompt and itself, and nothing attends to it. Its position id is the prompt's length, it uses the
native top-k, and it is never in the state from which answers are decoded. So one pass gives the latency tokens of all
positions and budgets, and the prompt's state is the same as without probes.

For a given prompt the pass always has the same shape, at batch 1 on one thread, in precompute and in the live executor,
so that their tokens are bit-equal: a batch of another shape may sum in another order.

Shapes: S prompt positions, M budgets, P insertion positions, D d_model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...controllers.budget_encoder import BudgetEncoder
from ...data.errors import CheckpointError
from ...data.plans import native_plan
from ...devices import single_thread
from ..models.backbone import Backbone, BlockState, EmbeddedPrompt


@dataclass(frozen=True)
class PromptState:
    """One prompt after the blocks that every plan runs in the same way."""

    prompt: EmbeddedPrompt
    hidden_1SD: tuple[Tensor, ...]  # before block 0, after block 0, ..., after the last shared block
    states: tuple[BlockState, ...]  # of each shared block, one row

    @property
    def num_shared(self) -> int:
        """Number of blocks that the token pass ran."""
        return len(self.states)

    @property
    def length(self) -> int:
        """Prompt positions, S."""
        return self.prompt.length


@torch.inference_mode()
def make_probes(model: Backbone, encoder: BudgetEncoder, budgets_ms: Sequence[float]) -> Tensor:
    """Returns the probes [M, D] of the budgets, in the model's dtype and on its device.

    Each is the encoded budget, scaled to the typical norm of the input embeddings so that attention affects it.
    Computed on one thread, like the token pass, so that the order of sums does not depend on the caller.
    """
    budget_M = torch.tensor(list(budgets_ms), dtype=torch.float32)
    with single_thread():
        encoded_MD = encoder.float().cpu()(budget_M)
        scaled_MD = encoded_MD * (model.embedding_norm() / encoded_MD.norm(dim=-1, keepdim=True))
    return scaled_MD.to(device=model.device, dtype=model.dtype)


@torch.inference_mode()
def token_pass(
    model: Backbone, prompt: EmbeddedPrompt, probe_MD: Tensor, positions: Sequence[int]
) -> tuple[NDArray[np.float16], PromptState]:
    """Runs the blocks up to the last of `positions` with their native top-k.

    Args:
        probe_MD: one probe for each budget.
        positions: insertion positions, from 1.

    Returns:
        Latency tokens [P, M, D], the probes' hidden states after that many blocks, before the final norm; and the
        prompt's state, without probes.

    Raises:
        CheckpointError: a token does not fit float16, or is not finite.
    """
    length, num_shared = prompt.length, max(positions)
    native = native_plan(model.geometry.native_top_k)
    states = tuple(model.new_state(block) for block in range(num_shared))
    with single_thread():
        places = model.positions(prompt, 0, length, probes=probe_MD.shape[0])
        hidden = torch.cat([prompt.hidden_1SD, probe_MD[None]], dim=1)
        after = [hidden]
        for block, state in enumerate(states):
            hidden = model.run_block(block, hidden, top_k=native[block], positions=places, state=state)
            after.append(hidden)
    token_PMD = torch.stack([after[position][0, length:] for position in positions]).half()
    if not bool(torch.isfinite(token_PMD).all()):
        raise CheckpointError(
            f"a latency token of a prompt of {length} positions does not fit float16, or is not finite: the model's "
            "activations are too large, or the prompt is longer than the model supports."
        )
    return token_PMD.cpu().numpy(), PromptState(prompt, tuple(hidden[:, :length] for hidden in after), states)
