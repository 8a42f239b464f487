"""A knob space that suits a model: its depth, its experts per token and its processor decide."""

from __future__ import annotations

from ....data.knobs import KnobSpace
from ..backbone import Geometry
from .token_limits import MOST_TOKENS, Convention

# MolmoE has 16 blocks, insertion positions 1 to 5, and 12 to 16 blocks run; other depths are scaled.
_DEPTH, _POSITIONS, _LEAST_SHARE = 16, (1, 2, 3, 4, 5), 0.75
_TOP_K_SHARES = (0.25, 0.375, 0.5, 0.75, 1.0)
_TIER_NAMES = {1: ("high",), 2: ("low", "high"), 3: ("low", "medium", "high")}


def default_knobs(geometry: Geometry, convention: Convention) -> KnobSpace:
    """Returns at most three tiers and five values for each other knob, so at most 375 settings."""
    blocks, native = geometry.n_blocks, geometry.least_top_k
    ranges = convention.default_ranges(min(MOST_TOKENS, geometry.max_positions // 2))
    positions = {min(max(round(position * blocks / _DEPTH), 1), blocks) for position in _POSITIONS}
    least = max(round(_LEAST_SHARE * blocks), min(positions), 1)
    counts = {round(least + step * (blocks - least) / 4) for step in range(5)}
    deepest = max(positions)
    always_after = [block for block in geometry.always_run if block >= deepest]
    counts = {count for count in counts if count >= deepest + len(always_after)} | {blocks}
    return KnobSpace(
        tiers=_TIER_NAMES[len(ranges)],
        insertion_positions=tuple(sorted(positions)),
        top_k=tuple(sorted({max(round(share * native), 1) for share in _TOP_K_SHARES})),
        num_blocks=tuple(sorted(counts)),
        tier_vision_tokens=ranges,
    )
