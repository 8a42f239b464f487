"""Block plans: what (insertion position, top-k, num_blocks) makes each block of the model do."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import ImportanceError, UnknownSetting
from .files.json_fields import JsonFields

BlockPlan = tuple[int, ...]  # experts per token of every block; 0 means the block is skipped (identity)
DENSE = 1  # the entry of a block without a router that runs


@dataclass(frozen=True)
class ImportanceScores:
    """Accuracy lost when a block is left out, for every block; larger is more important, negative is allowed.

    `None` is a block that was not scored and is therefore always kept: the first or the last, which the documented
    14-entry layout leaves out. Raises ImportanceError for other gaps and for numbers that are not finite.
    """

    scores: tuple[float | None, ...]
    std: tuple[float | None, ...] | None = None  # over the runs, one per score
    runs: int | None = None  # runs that the scores are means of
    source: str | None = None  # where they come from, for people

    def __post_init__(self) -> None:
        inner = self.scores[1:-1]
        if len(self.scores) < 1 or any(score is None for score in inner):
            raise ImportanceError(
                "importance scores must cover every block, or every block but the first and the last: "
                f"blocks {[b for b, s in enumerate(self.scores) if s is None]} of {len(self.scores)} are missing"
            )
        if any(score is not None and not math.isfinite(score) for score in self.scores):
            raise ImportanceError(f"importance scores must be finite numbers: {list(self.scores)}")
        if self.std is not None and len(self.std) != len(self.scores):
            raise ImportanceError(f"`std` has {len(self.std)} entries, but `scores` has {len(self.scores)}")

    @property
    def n_blocks(self) -> int:
        return len(self.scores)

    def to_dict(self) -> dict[str, Any]:
        """Returns the manifest's `importance`."""
        return {
            "scores": list(self.scores),
            "std": None if self.std is None else list(self.std),
            "runs": self.runs,
            "source": self.source,
        }

    @classmethod
    def from_fields(cls, fields: JsonFields) -> ImportanceScores:
        """Reads what `to_dict` writes from part of a file; raises the error of `fields`, with file and field."""
        scores = fields.each("scores", _optional_number)
        std = fields.optional("std", lambda inner, name: tuple(inner.each(name, _optional_number)))
        runs, source = fields.optional("runs", JsonFields.integer), fields.optional("source", JsonFields.text)
        try:
            return cls(tuple(scores), std, runs, source)
        except ImportanceError as cause:
            raise fields.fail(None, f"cannot be importance scores: {cause}") from cause


def _optional_number(fields: JsonFields, name: str) -> float | None:
    return fields.optional(name, JsonFields.number)


def native_plan(native_top_k: Sequence[int | None]) -> BlockPlan:
    """Returns the plan of the whole model, from the native top-k of each block (None: the block has no router)."""
    return tuple(DENSE if native is None else native for native in native_top_k)


def uniform_plan(native_top_k: Sequence[int | None], top_k: int) -> BlockPlan:
    """Returns the plan that runs every block, with `top_k` wherever there is a router."""
    return tuple(DENSE if native is None else top_k for native in native_top_k)


def block_plan(
    insertion_position: int | None,
    top_k: int,
    num_blocks: int,
    *,
    importance: ImportanceScores,
    native_top_k: Sequence[int | None],
    always_run: Collection[int] = (),
) -> BlockPlan:
    """Returns the experts per token of every block, 0 where it is skipped.

    The first `insertion_position` blocks run with their native top-k. Of the blocks after them, those that always run
    and then the most important ones run with `top_k`, so that `num_blocks` run in total; of equal scores, the earlier
    block runs.

    Args:
        native_top_k: of each block; None where a block has no router, so that no top-k applies to it.
        always_run: blocks that no plan may skip.

    Raises:
        UnknownSetting: `num_blocks` is too small for the blocks that must run, or above the number of blocks.
    """
    position = insertion_position or 0
    n_blocks = importance.n_blocks
    assert len(native_top_k) == n_blocks, "the importance scores are those of the model"
    required = {*range(position), *always_run}
    if not len(required) <= num_blocks <= n_blocks:
        also = sorted(set(always_run) - set(range(position)))
        fixed = f"the insertion position {position}" + (f" plus the blocks {also}, which always run," if also else "")
        raise UnknownSetting(f"num_blocks {num_blocks} must be between {fixed} and {n_blocks} blocks")
    rest = [block for block in range(position, n_blocks) if block not in required]
    kept = required | kept_blocks(rest, num_blocks - len(required), importance)
    head, tail = native_plan(native_top_k)[:position], uniform_plan(native_top_k, top_k)[position:]
    return head + tuple(entry if block in kept else 0 for block, entry in enumerate(tail, position))


def kept_blocks(candidates: Sequence[int], count: int, importance: ImportanceScores) -> frozenset[int]:
    """Returns the `count` most important of `candidates`. Unscored blocks come first; ties go to the earlier block."""

    def rank(block: int) -> tuple[float, int]:
        score = importance.scores[block]
        return (-math.inf if score is None else -score, block)

    return frozenset(sorted(candidates, key=rank)[:count])
