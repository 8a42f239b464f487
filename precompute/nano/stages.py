"""The stages of nano's training, in order. What each is for is said beside it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """Settings of one stage. Learning rates rise for `warmup` steps and then fall linearly to `last_lr`."""

    name: str
    steps: int
    lr: float
    last_lr: float
    images: int  # per step
    easy_share: float = 0.3  # of the images are easy_vqa's
    warmup: int = 50
    vision_only: bool = False  # train the vision tower by itself, all tiers in every step
    frozen_tower: bool = False  # leave the tower and the word embeddings as they are
    ideal_share: float = 0.0  # of the steps are on ideal features
    crowded: bool = False  # a card in nearly every place: more to learn from each image
    large_only_steps: int = 0  # begin with cards that every tier can read
    vision_weight: float = 0.1  # of the vision loss beside the answers'
    tier_shares: tuple[float, float, float] = (0.25, 0.3, 0.45)
    weights: tuple[tuple[str, float], ...] = ()  # question families; empty for the dataset's own mix
    slow_blocks: int | None = None  # the tower, the words and so many first blocks learn at SLOW times the rate
    fewer_experts: float = 0.0
    fewer_blocks: float = 0.0


LOOKUPS = (
    ("read", 0.42),
    ("beside", 0.14),
    ("place", 0.12),
    ("compare", 0.10),
    ("sum", 0.09),
    ("extreme", 0.05),
    ("value", 0.04),
    ("count", 0.04),
)
"""The families that come late, more often than the dataset has them."""

STAGES = (
    # The tower learns to name colours, shapes and digits before any question is asked.
    Stage("vision", 400, 2e-3, 1.452e-3, images=24, vision_only=True, large_only_steps=300),
    Stage("crowded", 1500, 1.5e-3, 2e-4, images=24, vision_only=True, crowded=True, easy_share=0.2),
    # Meanwhile (the two share no weights that either changes) the decoder learns to look up, to compare and to add.
    Stage("symbolic", 600, 2e-3, 1.655e-3, images=48, frozen_tower=True, ideal_share=1.0, easy_share=0.15, warmup=100),
    # The decoder meets the tower's own features. At the decoder's rate the tower forgot its digits within 100 steps; and
    # with slow first blocks, what is still to be learned is learned by later ones too.
    Stage("join", 100, 2e-3, 1.928e-3, images=48, vision_weight=0.5, easy_share=0.15, warmup=30, slow_blocks=5),
    # Side by side again: the tower learns small digits, ...
    Stage("digits", 1000, 1e-3, 5e-5, images=24, vision_only=True, crowded=True, easy_share=0.1),
    # ... the decoder what it cannot do yet, on features that are ideal in half of the steps.
    Stage(
        "lookups",
        1000,
        2e-3,
        1e-3,
        images=48,
        easy_share=0.12,
        ideal_share=0.5,
        frozen_tower=True,
        slow_blocks=5,
        weights=LOOKUPS,
    ),
)
SLOW = 0.15
MAX_ROUTER_NORM = 0.3
"""Length that router rows are held to: see `bound_routers`."""
