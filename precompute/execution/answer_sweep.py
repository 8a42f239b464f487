"""The answer sweep: one prompt under every plan of a tree, with shared work done once; and one plan alone, at batch 1.

Streams of a tree that run a block with the same top-k are stacked into one call. A plan's last block is run at the last
position only, where the family can leave out the rest. All rows of a batch belong to one prompt, so nothing is padded.

Shapes: R rows, S prompt positions, D d_model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from ...data.plans import BlockPlan, native_plan
from ...devices import single_thread
from ..models.backbone import Backbone, BlockState
from ..models.router_ties import TieWatch
from .batch_limit import BatchLimit
from .decoding import Branch, Decoded, decode_greedy
from .plan_tree import PlanTree, Stream, native_blocks
from .token_pass import PromptState

Places = list[int]


@torch.inference_mode()
def answer_alone(model: Backbone, state: PromptState, plan: BlockPlan, *, max_new_tokens: int) -> tuple[int, ...]:
    """Answers one prompt under one plan at batch 1 on one thread, as the live executor does. Returns new token ids.

    Continues from the token pass. Equal plans run identically, whichever settings they come from.
    """
    with single_thread():
        branch = run_prompt(model, state, plan)
        return decode_greedy(model, state.prompt, [branch], max_new_tokens=max_new_tokens, watch_ties=False)[
            0
        ].token_ids


def run_prompt(model: Backbone, state: PromptState, plan: BlockPlan) -> Branch:
    """Runs the rest of `plan` after the token pass, at batch 1."""
    start = min(native_blocks(plan, native_plan(model.geometry.native_top_k)), state.num_shared)
    states = dict(enumerate(state.states[:start]))
    hidden_1SD = state.hidden_1SD[start]
    positions = model.positions(state.prompt, 0, state.length)
    for block in range(start, len(plan)):
        if plan[block]:
            states[block] = model.new_state(block)
            hidden_1SD = model.run_block(block, hidden_1SD, top_k=plan[block], positions=positions, state=states[block])
        else:
            hidden_1SD = model.skip_block(block, hidden_1SD, positions)
    return Branch(plan, hidden_1SD[0, -1], states)


@torch.inference_mode()
def sweep_answers(
    model: Backbone, state: PromptState, tree: PlanTree, limit: BatchLimit, *, max_new_tokens: int
) -> list[Decoded]:
    """Answers one prompt under every plan of `tree`, in the order of `tree.plans`."""
    prefill = _TreePrefill(model, state, limit)
    for block, level in enumerate(tree.levels):
        prefill.run_level(block, level)
    branches = prefill.branches(tree)
    tied = prefill.tied_streams(tree)
    decoded: list[Decoded] = []
    for batch in limit.batches(
        branches,
        max(1, state.length // _DECODE_SHARE),
        lambda rows: decode_greedy(model, state.prompt, rows, max_new_tokens=max_new_tokens, watch_ties=True),
    ):
        decoded += batch
    return [
        Decoded(one.token_ids, one.is_near_tie, one.is_router_tie or is_tied)
        for one, is_tied in zip(decoded, tied, strict=True)
    ]


# A decoding row holds keys and values of S positions but computes one, so a call takes more rows than in the prefill.
_DECODE_SHARE = 8


@dataclass
class _Streams:
    """The streams after one block."""

    hidden_SD: list[Tensor]  # [S, D], or [1, D] after a stream's last block
    states: dict[int, BlockState] = field(default_factory=dict)  # of this block, one row each, by stream
    tied: list[tuple[Places, Tensor]] = field(default_factory=list)  # streams of a call, whether each met a tie


class _TreePrefill:
    """Runs the prefill of all plans of a tree, level by level."""

    def __init__(self, model: Backbone, state: PromptState, limit: BatchLimit) -> None:
        self._model, self._state, self._limit = model, state, limit
        self._positions = model.positions(state.prompt, 0, state.length)
        self._levels: list[_Streams] = []

    def run_level(self, block: int, level: Sequence[Stream]) -> None:
        """Runs one block for every stream of its level."""
        before = self._levels[-1].hidden_SD if self._levels else [self._state.hidden_1SD[0][0]]
        after = _Streams([before[stream.parent] for stream in level])
        runs: dict[tuple[int, bool], Places] = defaultdict(list)  # (top-k, whether this is the last block) -> streams
        for place, stream in enumerate(level):
            if stream.is_shared:
                after.hidden_SD[place] = self._state.hidden_1SD[block + 1][0]
                after.states[place] = self._state.states[block]
            elif stream.is_last:
                runs[0, True].append(place)  # one call for all values of top-k
            elif stream.top_k:
                runs[stream.top_k, False].append(place)
            else:
                skipped_1SD = self._model.skip_block(block, after.hidden_SD[place][None], self._positions)
                after.hidden_SD[place] = skipped_1SD[0]
        for (top_k, is_last), places in runs.items():
            run = partial(self._run, block, level=level, after=after, top_k=top_k, is_last=is_last)
            for _ in self._limit.batches(places, self._state.length, run):
                pass
        if self._levels:
            self._levels[-1].hidden_SD = []  # later levels need only the states
        self._levels.append(after)

    def _run(
        self,
        block: int,
        places: Sequence[int],
        level: Sequence[Stream],
        after: _Streams,
        *,
        top_k: int,
        is_last: bool,
    ) -> None:
        """Runs the block for the streams at `places`: with `top_k`, or each with its own if it is their last block."""
        hidden_RSD = torch.stack([after.hidden_SD[place] for place in places])
        state, watch = self._model.new_state(block), TieWatch()
        hidden = self._model.run_block(
            block,
            hidden_RSD,
            top_k=torch.tensor([level[place].top_k for place in places]) if is_last else top_k,
            positions=self._positions,
            state=state,
            last_only=is_last,
            watch=watch,
        )
        for row, place in enumerate(places):
            after.hidden_SD[place] = hidden[row]
            after.states[place] = state.row(row)
        if watch.tied_R is not None:
            after.tied.append((list(places), watch.tied_R))

    def branches(self, tree: PlanTree) -> list[Branch]:
        """Returns every plan's prefilled prompt, in the order of `tree.plans`."""
        branches = []
        for index, plan in enumerate(tree.plans):
            path = tree.path(index)
            states = {block: self._levels[block].states[path[block]] for block, top_k in enumerate(plan) if top_k}
            branches.append(Branch(plan, self._levels[-1].hidden_SD[index][-1], states))
        return branches

    def tied_streams(self, tree: PlanTree) -> list[bool]:
        """Returns whether a router tied on each plan's path, in the order of `tree.plans`."""
        before = [False]
        for level, streams in zip(tree.levels, self._levels, strict=True):
            after = [before[stream.parent] for stream in level]
            for places, tied_R in streams.tied:
                for place, is_tied in zip(places, tied_R.tolist(), strict=True):
                    after[place] |= is_tied
            before = after
        return before
