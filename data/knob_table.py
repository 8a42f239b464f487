"""The values of each knob as a table of a card."""

from __future__ import annotations

from collections.abc import Sequence

from .cards import markdown_table
from .knobs import KnobSpace


def knob_table(space: KnobSpace) -> str:
    """Returns the values of each knob."""
    tiers = space.tiers
    if space.tier_crops is not None:
        tiers = tuple(f"{t} ({low}-{high} crops)" for t, (low, high) in zip(tiers, space.tier_crops, strict=True))
    positions = [p for p in space.insertion_positions if p is not None]
    rows: list[tuple[str, Sequence[object]]] = [
        ("image tier", tiers),
        ("insertion position of the second controller", positions or ["not recorded"]),
        ("experts per token (top-k)", space.top_k),
        ("blocks run", space.num_blocks),
    ]
    return markdown_table(("knob", "values"), [(name, ", ".join(map(str, values))) for name, values in rows])
