"""What the controllers considered for one request: the choices of each stage, their probabilities and latencies."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..controllers.single_request import StageChoice
from ..data.knobs import KnobSpace


@dataclass(frozen=True)
class ImageChoice:
    """One choice of Stage1."""

    tier: str
    insertion_position: int | None
    probability: float
    expected_ms: tuple[float, float] | None  # of its fastest and its slowest setting; None: not known
    chosen: bool


@dataclass(frozen=True)
class ComputeChoice:
    """One choice of Stage2, after Stage1 chose tier and insertion position."""

    top_k: int
    num_blocks: int
    probability: float
    expected_ms: float | None  # None: not known
    chosen: bool


@dataclass(frozen=True)
class Explanation:
    """The choices of both stages, the most likely ones first. A choice that was not allowed has probability 0."""

    stage1: tuple[ImageChoice, ...]
    stage2: tuple[ComputeChoice, ...]

    @classmethod
    def of(
        cls, space: KnobSpace, first: StageChoice, second: StageChoice, expected_ms_X: NDArray[np.float64]
    ) -> Explanation:
        """Returns the explanation of one request's choices, from the expected latencies of all settings."""
        expected_JA = space.by_choice(expected_ms_X, np.nan)
        images = []
        for pair, probability in enumerate(first.probability_C.tolist()):
            tier, place = divmod(pair, len(space.insertion_positions))
            known = expected_JA[pair][np.isfinite(expected_JA[pair])]
            span = (float(known.min()), float(known.max())) if len(known) else None
            images.append(
                ImageChoice(
                    space.tiers[tier], space.insertion_positions[place], probability, span, pair == first.choice
                )
            )
        computes = []
        for pair, probability in enumerate(second.probability_C.tolist()):
            top_k, blocks = divmod(pair, len(space.num_blocks))
            expected = float(expected_JA[first.choice, pair])
            computes.append(
                ComputeChoice(
                    space.top_k[top_k],
                    space.num_blocks[blocks],
                    probability,
                    expected if np.isfinite(expected) else None,
                    pair == second.choice,
                )
            )
        return cls(
            tuple(sorted(images, key=lambda one: -one.probability)),
            tuple(sorted(computes, key=lambda one: -one.probability)),
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
