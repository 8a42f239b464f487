"""The token pass: runs the prompt and one probe per budget through the blocks up to the last insertion position.

A probe attends to the prompt and itself, and nothing attends to it. Its position id is the prompt's length, it uses the
native top-k, and it is never in the cache from which answers are decoded. So one pass gives the latency tokens of all
positions and budgets, and the prompt's state is the same as without probes.

For a given prompt the pass always has the same shape, at batch 1 on one thread, in precompute and in the live executor,
so that their tokens are bit-equal: a batch of another shape may sum in another order.

Shapes: S prompt positions, M budgets, P insertion positions, D d_model, H heads, W head width.
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
from ...devices import single_thread
from ..models.molmoe.model import Molmoe
from .kv_cache import KeyValueCache


@dataclass(frozen=True)
class PromptState:
    """One prompt after the blocks that every plan runs in the same way."""

    hidden_1SD: tuple[Tensor, ...]  # before block 0, after block 0, ..., after the last shared block
    keys_1HSW: tuple[Tensor, ...]  # of each shared block
    values_1HSW: tuple[Tensor, ...]

    @property
    def num_shared(self) -> int:
        """Number of blocks that the token pass ran."""
        return len(self.keys_1HSW)

    @property
    def length(self) -> int:
        """Prompt positions, S."""
        return int(self.hidden_1SD[0].shape[1])


def typical_embedding_norm(model: Molmoe) -> float:
    """Returns the median norm of the input embeddings, without untrained rows, which are zero."""
    norms = model.embedding.weight.detach().float().norm(dim=-1)
    used = norms[norms > 0]
    return float(used.median()) if len(used) else 1.0


@torch.inference_mode()
def make_probes(model: Molmoe, encoder: BudgetEncoder, budgets_ms: Sequence[float]) -> Tensor:
    """Returns the probes [M, D] of the budgets, in the model's dtype and on its device.

    Each is the encoded budget, scaled to the typical norm of the input embeddings so that attention affects it.
    Computed on one thread, like the token pass, so that the order of sums does not depend on the caller.
    """
    budget_M = torch.tensor(list(budgets_ms), dtype=torch.float32)
    with single_thread():
        encoded_MD = encoder.float().cpu()(budget_M)
        scaled_MD = encoded_MD * (typical_embedding_norm(model) / encoded_MD.norm(dim=-1, keepdim=True))
    return scaled_MD.to(device=model.device, dtype=model.dtype)


def probe_mask(length: int, num_probes: int, device: torch.device) -> Tensor:
    """Returns the mask [1, 1, S + M, S + M] bool, True = attend: prompt causal, a probe to the prompt and itself."""
    total = length + num_probes
    mask = torch.ones(total, total, dtype=torch.bool, device=device).tril()
    mask[length:, length:] = torch.eye(num_probes, dtype=torch.bool, device=device)
    return mask[None, None]


@torch.inference_mode()
def token_pass(
    model: Molmoe, prompt_1SD: Tensor, probe_MD: Tensor, positions: Sequence[int]
) -> tuple[NDArray[np.float16], PromptState]:
    """Runs the blocks up to the last of `positions` with the native top-k.

    Args:
        prompt_1SD: the first block's input.
        probe_MD: one probe for each budget.
        positions: insertion positions, from 1.

    Returns:
        Latency tokens [P, M, D], the probes' hidden states after that many blocks, before the final norm; and the
        prompt's state, without probes.

    Raises:
        CheckpointError: a token does not fit float16, or is not finite.
    """
    length, num_probes = prompt_1SD.shape[1], probe_MD.shape[0]
    place = torch.arange(length + num_probes, device=prompt_1SD.device).clamp(max=length)
    mask = probe_mask(length, num_probes, prompt_1SD.device)
    cache = KeyValueCache()
    with single_thread():
        rotary = model.position_embeddings(place[None])
        hidden = torch.cat([prompt_1SD, probe_MD[None]], dim=1)
        after = [hidden]
        for block in range(max(positions)):
            hidden = model.run_block(
                block,
                hidden,
                top_k=model.config.native_top_k,
                position_embeddings=rotary,
                attention_mask=mask,
                cache=cache,
            )
            after.append(hidden)
    state = PromptState(
        tuple(hidden[:, :length] for hidden in after),
        tuple(cache.keys[block][:, :, :length] for block in range(max(positions))),
        tuple(cache.values[block][:, :, :length] for block in range(max(positions))),
    )
    token_PMD = torch.stack([after[position][0, length:] for position in positions]).half()
    if not bool(torch.isfinite(token_PMD).all()):
        raise CheckpointError(
            f"a latency token of a prompt of {length} positions does not fit float16, or is not finite: the model's "
            "activations are too large, or the prompt is longer than the model supports."
        )
    return token_PMD.cpu().numpy(), state
