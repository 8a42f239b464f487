"""The tree of block plans: plans that agree on their first blocks share them. Knows nothing of the model.

A *stream* is what plans with a common beginning have in common: after block b there is one stream for each distinct
beginning of b + 1 entries. A level says how the streams after its block come out of those before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from ...data.plans import BlockPlan


@dataclass(frozen=True)
class Stream:
    """One beginning of one or more plans, up to a block."""

    parent: int  # index into the streams before this block
    top_k: int  # experts per token in this block; 0 where it is skipped
    is_shared: bool  # the token pass has already run it: every block up to here has the native top-k
    is_last: bool  # this block runs, and no later one does


@dataclass(frozen=True)
class PlanTree:
    """Distinct plans and the streams they share."""

    plans: tuple[BlockPlan, ...]
    levels: tuple[tuple[Stream, ...], ...]  # [block][stream]; after the last block, stream i is plan i

    @classmethod
    def of(cls, plans: Sequence[BlockPlan], *, native_top_k: int, num_shared: int) -> PlanTree:
        """Builds the tree of `plans`; equal ones count once, in the order of their first mention.

        Args:
            num_shared: blocks that the token pass runs with the native top-k, whatever the plan.
        """
        distinct = tuple(dict.fromkeys(plans))
        assert distinct, "a sweep needs plans"
        n_blocks = len(distinct[0])
        assert all(len(plan) == n_blocks for plan in distinct), "plans of one model have one length"
        levels: list[tuple[Stream, ...]] = []
        before: dict[BlockPlan, int] = {(): 0}
        for block in range(n_blocks):
            after: dict[BlockPlan, int] = {}
            streams: list[Stream] = []
            for plan in distinct:
                beginning = plan[: block + 1]
                if beginning in after:
                    continue
                after[beginning] = len(streams)
                streams.append(
                    Stream(
                        parent=before[plan[:block]],
                        top_k=plan[block],
                        is_shared=block < num_shared and native_blocks(beginning, native_top_k) == block + 1,
                        is_last=plan[block] > 0 and _all_end(distinct, beginning),
                    )
                )
            levels.append(tuple(streams))
            before = after
        return cls(distinct, tuple(levels))

    @cached_property
    def block_runs(self) -> int:
        """Block runs in the tree, those of the token pass included."""
        return sum(stream.top_k > 0 for level in self.levels for stream in level)

    @cached_property
    def runs_beyond_token_pass(self) -> int:
        """Block runs that the token pass has not already made."""
        return sum(stream.top_k > 0 and not stream.is_shared for level in self.levels for stream in level)

    def path(self, plan_index: int) -> tuple[int, ...]:
        """Returns the plan's stream after every block."""
        stream, path = plan_index, []
        for level in reversed(self.levels):
            path.append(stream)
            stream = level[stream].parent
        return tuple(reversed(path))


def native_blocks(plan: BlockPlan, native_top_k: int) -> int:
    """Returns how many blocks in front run with the native top-k."""
    for block, top_k in enumerate(plan):
        if top_k != native_top_k:
            return block
    return len(plan)


def active_blocks(plan: BlockPlan) -> int:
    """Returns how many blocks run."""
    return sum(top_k > 0 for top_k in plan)


def _all_end(plans: Sequence[BlockPlan], beginning: BlockPlan) -> bool:
    """Whether every plan that begins so skips all later blocks."""
    length = len(beginning)
    return not any(any(plan[length:]) for plan in plans if plan[:length] == beginning)
