"""The tree of block plans: plans with equal first blocks share that work. Independent of the model.

A *stream* represents all plans with the same prefix: after block b there is one stream for each distinct prefix of
b + 1 entries. A level describes how the streams after its block derive from those before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from ...data.plans import BlockPlan


@dataclass(frozen=True)
class Stream:
    """A prefix of one or more plans, up to a block."""

    parent: int  # index into the streams before this block
    top_k: int  # experts per token in this block; 0 where it is skipped
    is_shared: bool  # the token pass has already run it: all blocks so far run as in the whole model
    is_last: bool  # this block runs, and no later one does


@dataclass(frozen=True)
class PlanTree:
    """Distinct plans and the streams that they share."""

    plans: tuple[BlockPlan, ...]
    levels: tuple[tuple[Stream, ...], ...]  # [block][stream]; after the last block, stream i is plan i

    @classmethod
    def of(cls, plans: Sequence[BlockPlan], *, native: BlockPlan, num_shared: int) -> PlanTree:
        """Builds the tree of `plans`, without duplicates, in the order of first occurrence.

        Args:
            native: the plan of the whole model.
            num_shared: blocks that the token pass runs with the native top-k under every plan.
        """
        distinct = tuple(dict.fromkeys(plans))
        assert distinct, "a sweep needs plans"
        n_blocks = len(distinct[0])
        assert all(len(plan) == n_blocks for plan in distinct), "plans of one model have equal lengths"
        levels: list[tuple[Stream, ...]] = []
        before: dict[BlockPlan, int] = {(): 0}
        for block in range(n_blocks):
            after: dict[BlockPlan, int] = {}
            streams: list[Stream] = []
            for plan in distinct:
                prefix = plan[: block + 1]
                if prefix in after:
                    continue
                after[prefix] = len(streams)
                streams.append(
                    Stream(
                        parent=before[plan[:block]],
                        top_k=plan[block],
                        is_shared=block < num_shared and native_blocks(prefix, native) == block + 1,
                        is_last=plan[block] > 0 and _all_end(distinct, prefix),
                    )
                )
            levels.append(tuple(streams))
            before = after
        return cls(distinct, tuple(levels))

    @cached_property
    def block_runs(self) -> int:
        """Number of block runs in the tree, including those of the token pass."""
        return sum(stream.top_k > 0 for level in self.levels for stream in level)

    @cached_property
    def runs_beyond_token_pass(self) -> int:
        """Number of block runs that remain after the token pass."""
        return sum(stream.top_k > 0 and not stream.is_shared for level in self.levels for stream in level)

    def path(self, plan_index: int) -> tuple[int, ...]:
        """Returns the plan's stream after each block."""
        stream, path = plan_index, []
        for level in reversed(self.levels):
            path.append(stream)
            stream = level[stream].parent
        return tuple(reversed(path))


def native_blocks(plan: BlockPlan, native: BlockPlan) -> int:
    """Returns the number of leading blocks that run as in the plan of the whole model."""
    for block, (top_k, whole) in enumerate(zip(plan, native, strict=False)):
        if top_k != whole:
            return block
    return len(plan)


def active_blocks(plan: BlockPlan) -> int:
    """Returns the number of blocks that run."""
    return sum(top_k > 0 for top_k in plan)


def _all_end(plans: Sequence[BlockPlan], prefix: BlockPlan) -> bool:
    """Returns whether every plan with this prefix skips all later blocks."""
    length = len(prefix)
    return not any(any(plan[length:]) for plan in plans if plan[:length] == prefix)
