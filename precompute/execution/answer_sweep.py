"""The answer sweep: one prompt under every plan of a tree, with shared work done once; and one plan alone, at batch 1.

Streams of a tree that run a block with the same top-k are stacked into one call. A plan's last block is run at the last
position only; the other positions need just their keys and values. All rows of a batch belong to one prompt, so nothing
is padded.

Shapes: S prompt positions, D d_model, H key/value heads, W head width.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from ...data.plans import BlockPlan
from ...devices import single_thread
from ..models.molmoe.model import Molmoe, Rotary
from ..models.router_ties import TieWatch
from .batch_limit import BatchLimit
from .decoding import Branch, Decoded, decode_greedy
from .kv_cache import KeyValueCache, with_room
from .plan_tree import PlanTree, Stream, native_blocks
from .token_pass import PromptState

Places = list[int]


@torch.inference_mode()
def answer_alone(
    model: Molmoe, state: PromptState, plan: BlockPlan, *, max_new_tokens: int, end_id: int
) -> tuple[int, ...]:
    """Answers one prompt under one plan at batch 1 on one thread, as the live executor does. Returns new token ids.

    Continues from the token pass. Equal plans run identically, whichever settings they come from.
    """
    with single_thread():
        branch = run_prompt(model, state, plan)
        return decode_greedy(model, [branch], max_new_tokens=max_new_tokens, end_id=end_id, watch_ties=False)[
            0
        ].token_ids


def run_prompt(model: Molmoe, state: PromptState, plan: BlockPlan) -> Branch:
    """Runs the rest of `plan` after the token pass, at batch 1."""
    start = min(native_blocks(plan, model.config.native_top_k), state.num_shared)
    cache = KeyValueCache()
    cache.keys.update(enumerate(state.keys_1HSW[:start]))
    cache.values.update(enumerate(state.values_1HSW[:start]))
    hidden_1SD = state.hidden_1SD[start]
    rotary = _rotary(model, state)
    for block in range(start, len(plan)):
        if plan[block]:
            hidden_1SD = model.run_block(block, hidden_1SD, top_k=plan[block], position_embeddings=rotary, cache=cache)
    keys = {block: key[0] for block, key in cache.keys.items()}
    values = {block: value[0] for block, value in cache.values.items()}
    return Branch(plan, hidden_1SD[0, -1], keys, values, state.length)


@torch.inference_mode()
def sweep_answers(
    model: Molmoe, state: PromptState, tree: PlanTree, limit: BatchLimit, *, max_new_tokens: int, end_id: int
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
        lambda rows: decode_greedy(model, rows, max_new_tokens=max_new_tokens, end_id=end_id, watch_ties=True),
    ):
        decoded += batch
    return [
        Decoded(one.token_ids, one.is_near_tie, one.is_router_tie or is_tied)
        for one, is_tied in zip(decoded, tied, strict=True)
    ]


# A decoding row holds keys and values of S positions but computes one, so a call takes more rows than in the prefill.
_DECODE_SHARE = 8


def _rotary(model: Molmoe, state: PromptState) -> Rotary:
    return model.position_embeddings(torch.arange(state.length, device=state.hidden_1SD[0].device)[None])


@dataclass
class _Streams:
    """The streams' states after one block."""

    hidden_SD: list[Tensor]  # [S, D], or [1, D] after a stream's last block
    keys_HSW: dict[int, Tensor] = field(default_factory=dict)  # of this block, by stream
    values_HSW: dict[int, Tensor] = field(default_factory=dict)
    tied: list[tuple[Places, Tensor]] = field(default_factory=list)  # streams of a call, whether each met a tie


class _TreePrefill:
    """Runs the prefill of all plans of a tree, level by level."""

    def __init__(self, model: Molmoe, state: PromptState, limit: BatchLimit) -> None:
        self._model, self._state, self._limit = model, state, limit
        self._rotary = _rotary(model, state)
        self._levels: list[_Streams] = []

    def run_level(self, block: int, level: Sequence[Stream]) -> None:
        """Runs one block for every stream of its level."""
        before = self._levels[-1].hidden_SD if self._levels else [self._state.hidden_1SD[0][0]]
        after = _Streams([before[stream.parent] for stream in level])  # correct for the streams that skip the block
        whole: dict[int, Places] = defaultdict(list)
        last: Places = []
        for place, stream in enumerate(level):
            if stream.is_shared:
                after.hidden_SD[place] = self._state.hidden_1SD[block + 1][0]
                after.keys_HSW[place] = self._state.keys_1HSW[block][0]
                after.values_HSW[place] = self._state.values_1HSW[block][0]
            elif stream.is_last:
                last.append(place)
            elif stream.top_k:
                whole[stream.top_k].append(place)
        for top_k, places in whole.items():
            run = partial(self._run_whole, block, top_k=top_k, after=after)
            for _ in self._limit.batches(places, self._state.length, run):
                pass
        for _ in self._limit.batches(last, self._state.length, lambda rows: self._run_last(block, rows, level, after)):
            pass
        if self._levels:
            self._levels[-1].hidden_SD = []  # later levels need only keys and values
        self._levels.append(after)

    def _run_whole(self, block: int, places: Sequence[int], top_k: int, after: _Streams) -> None:
        """Runs the block at every position of the streams at `places`."""
        hidden_RSD = torch.stack([after.hidden_SD[place] for place in places])
        cache, watch = KeyValueCache(), TieWatch()
        hidden_RSD = self._model.run_block(
            block, hidden_RSD, top_k=top_k, position_embeddings=self._rotary, cache=cache, watch=watch
        )
        self._keep(block, places, hidden_RSD, cache, watch, after)

    def _run_last(self, block: int, places: Sequence[int], level: Sequence[Stream], after: _Streams) -> None:
        """Runs the block at the last position only, after computing the keys and values of the positions before it."""
        hidden_RSD = torch.stack([after.hidden_SD[place] for place in places])
        top_k = torch.tensor([level[place].top_k for place in places])
        cosine, sine = self._rotary
        front = self._model.keys_values(block, hidden_RSD[:, :-1], (cosine[:, :-1], sine[:, :-1]))
        keys, values = (with_room(prompt_RHSW, room=1) for prompt_RHSW in front)
        cache, watch = KeyValueCache({block: keys}, {block: values}, self._state.length - 1), TieWatch()
        hidden_R1D = self._model.run_block(
            block,
            hidden_RSD[:, -1:],
            top_k=top_k,
            position_embeddings=(cosine[:, -1:], sine[:, -1:]),
            cache=cache,
            watch=watch,
        )
        self._keep(block, places, hidden_R1D, cache, watch, after)

    @staticmethod
    def _keep(
        block: int,
        places: Sequence[int],
        hidden: Tensor,
        cache: KeyValueCache,
        watch: TieWatch,
        after: _Streams,
    ) -> None:
        for row, place in enumerate(places):
            after.hidden_SD[place] = hidden[row]
            after.keys_HSW[place] = cache.keys[block][row]
            after.values_HSW[place] = cache.values[block][row]
        assert watch.tied_R is not None, "a block that ran has called its watch"
        after.tied.append((list(places), watch.tied_R))

    def branches(self, tree: PlanTree) -> list[Branch]:
        """Returns every plan's prefilled prompt, in the order of `tree.plans`."""
        branches = []
        for index, plan in enumerate(tree.plans):
            path = tree.path(index)
            running = [block for block, top_k in enumerate(plan) if top_k]
            keys = {block: self._levels[block].keys_HSW[path[block]] for block in running}
            values = {block: self._levels[block].values_HSW[path[block]] for block in running}
            last_D = self._levels[-1].hidden_SD[index][-1]
            branches.append(Branch(plan, last_D, keys, values, self._state.length))
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
