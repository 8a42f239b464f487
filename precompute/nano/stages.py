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
    symbolic: bool = False  # train the decoder by itself, on ideal features; word embeddings stay as they are
    crowded: bool = False  # a card in nearly every place: more to learn from each image
    large_only_steps: int = 0  # begin with cards that every tier can read
    vision_weight: float = 0.1  # of the vision loss beside the answers'
    tier_shares: tuple[float, float, float] = (0.25, 0.3, 0.45)
    weights: tuple[tuple[str, float], ...] = ()  # question families; empty for the dataset's own mix
    fewer_experts: float = 0.0
    fewer_blocks: float = 0.0


STAGES = (
    # The tower learns to name colours, shapes and digits before any question is asked.
    Stage("vision", 400, 2e-3, 1.452e-3, images=24, vision_only=True, large_only_steps=300),
    Stage("crowded", 1500, 1.5e-3, 2e-4, images=24, vision_only=True, crowded=True, easy_share=0.2),
    # Meanwhile (the two share no weights that either changes) the decoder learns to look up, to compare and to add.
    Stage("symbolic", 3000, 2e-3, 1e-3, images=48, symbolic=True, easy_share=0.15, warmup=100),
    Stage("answers", 4000, 2e-3, 1e-3, images=48),
)
MAX_ROUTER_NORM = 0.3
"""Length that router rows are held to: see `bound_routers`."""
