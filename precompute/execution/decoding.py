"""Greedy decoding of a batch of prefilled prompts, each under its own plan.

One call runs a block for all rows whose plan has it, whatever their top-k; a row leaves the batch at its end token. The
live executor decodes a batch of one.

Shapes: R rows, D d_model, V logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...data.plans import BlockPlan
from ..models.backbone import Backbone, BlockState, EmbeddedPrompt, Positions
from ..models.router_ties import TieWatch

# Two best logits closer than this may swap in a batch of another shape.
NEAR_TIE = 1e-3


@dataclass(frozen=True)
class Branch:
    """A prompt after its prefill under one plan."""

    plan: BlockPlan
    last_D: Tensor  # hidden state of the last prompt position after the last block
    states: Mapping[int, BlockState]  # of every block that runs, one row


@dataclass(frozen=True)
class Decoded:
    """The new tokens of one row, including the end token if it came before the limit."""

    token_ids: tuple[int, ...]
    is_near_tie: bool = False  # the two best logits were closer than NEAR_TIE at least once
    is_router_tie: bool = False  # a router tied at least once


@torch.inference_mode()
def decode_greedy(
    model: Backbone, prompt: EmbeddedPrompt, branches: Sequence[Branch], *, max_new_tokens: int, watch_ties: bool
) -> list[Decoded]:
    """Decodes each branch under its own plan, in the order of `branches`, until one of the model's end tokens.

    Args:
        prompt: whose branches they are, so that no row is padded.
        watch_ties: whether to record ties of the router, as a batch of several plans should.
    """
    tokens: list[list[int]] = [[] for _ in branches]
    near = [False] * len(branches)
    tied = [False] * len(branches)
    rows = list(range(len(branches)))  # the branch of each row that has not ended
    hidden_R1D = torch.stack([branch.last_D for branch in branches])[:, None]
    steps: _PlanRows | None = None
    for step in range(max_new_tokens):
        best_R2 = model.logits(hidden_R1D)[:, 0].float().topk(2, dim=-1)
        is_near_R = (best_R2.values[:, 0] - best_R2.values[:, 1] < NEAR_TIE).tolist()
        token_R = best_R2.indices[:, 0]
        for row, token, is_near in zip(rows, token_R.tolist(), is_near_R, strict=True):
            tokens[row].append(token)
            near[row] |= is_near
        kept = [place for place, row in enumerate(rows) if tokens[row][-1] not in model.end_ids]
        if not kept or step + 1 == max_new_tokens:
            break
        if len(kept) < len(rows):
            rows = [rows[place] for place in kept]
            keep_R = torch.tensor(kept, device=token_R.device)
            token_R = token_R[keep_R]
            if steps is not None:
                steps.keep(kept, keep_R)
        if steps is None:
            steps = _PlanRows(model, [branches[row] for row in rows], room=max_new_tokens - 1)
        watch_rows = tied if watch_ties else None
        positions = model.positions(prompt, prompt.length + step, 1)
        hidden_R1D = steps.step(model.word_embeddings(token_R)[:, None], positions, rows, watch_rows)
    return [Decoded(tuple(ids), *flags) for ids, *flags in zip(tokens, near, tied, strict=True)]


class _PlanRows:
    """The rows of a batch with their plans and states: one state for each block, holding the rows that run it."""

    def __init__(self, model: Backbone, branches: Sequence[Branch], room: int) -> None:
        self._model = model
        self._device = branches[0].last_D.device
        self._plan_RB = torch.tensor([branch.plan for branch in branches])
        self._states: dict[int, BlockState] = {}
        for block in range(self._plan_RB.shape[1]):
            running = [branch.states[block] for branch in branches if branch.plan[block]]
            if running:
                self._states[block] = model.stack(running, room)

    def keep(self, places: list[int], keep_R: Tensor) -> None:
        """Drops all rows except those at `places`."""
        for block, state in list(self._states.items()):
            runs_R = self._plan_RB[:, block] > 0
            place_in_block_R = runs_R.cumsum(0) - 1
            kept_in_block = place_in_block_R[places][runs_R[places]]
            if len(kept_in_block):
                state.keep_rows(kept_in_block.to(self._device))
            else:
                del self._states[block]
        self._plan_RB = self._plan_RB[keep_R.cpu()]

    def step(self, hidden_R1D: Tensor, positions: Positions, rows: list[int], tied: list[bool] | None) -> Tensor:
        """Runs one new position through every row's plan. Sets `tied`, if given, for rows where a router tied."""
        is_tied_R = torch.zeros(len(rows), dtype=torch.bool, device=self._device)
        for block, state in self._states.items():
            watch = None if tied is None else TieWatch()
            top_k_R = self._plan_RB[:, block]
            runs_R = top_k_R > 0
            is_whole = bool(runs_R.all())
            index = slice(None) if is_whole else runs_R.nonzero()[:, 0].to(self._device)
            distinct = top_k_R[runs_R].unique()
            top_k = int(distinct[0]) if len(distinct) == 1 else top_k_R[runs_R]
            moved = self._model.run_block(
                block, hidden_R1D[index], top_k=top_k, positions=positions, state=state, watch=watch
            )
            if is_whole:
                hidden_R1D = moved
            else:
                hidden_R1D = hidden_R1D.clone()
                hidden_R1D[index] = moved
            if watch is not None and watch.tied_R is not None:
                is_tied_R[index] |= watch.tied_R
        if tied is not None:
            for row, is_tied in zip(rows, is_tied_R.tolist(), strict=True):
                tied[row] |= is_tied
        return hidden_R1D
