"""The stages of nano's training, in order. What each is for is said beside it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .mixes import COUNTING, FINAL, LOOKUPS, REASONING, THIN


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
    vision_only: bool = False  # train the vision tower by itself, on every one of `vision_tiers` in each step
    vision_tiers: tuple[str, ...] = ("low", "medium", "high")
    frozen_tower: bool = False  # leave the tower and the word embeddings as they are
    ideal_share: float = 0.0  # of the steps are on ideal features
    crowded: bool = False  # a card in nearly every place: more to learn from each image
    inner_share: float = 0.0  # of the images have more inner cards than the dataset's
    large_only_steps: int = 0  # begin with cards that every tier can read
    vision_weight: float = 0.1  # of the vision loss beside the answers'
    hint_weight: float = 0.0  # of the hints beside the answers: see `hint_loss`
    tier_shares: tuple[float, float, float] = (0.25, 0.3, 0.45)
    weights: tuple[tuple[str, float], ...] = ()  # question families; empty for the dataset's own mix
    slow_blocks: int | None = None  # the tower, the words and so many first blocks learn at SLOW times the rate
    block_order: tuple[int, ...] = ()  # spread the decoder's work before the stage: see `repeat_blocks`
    expert_width: int | None = None  # leave experts so many neurons before the stage: see `narrow_experts`
    max_router_norm: float = 0.3  # length that router rows are held to: see `bound_routers`
    fewer_experts: float = 0.0
    top_ks: tuple[int, ...] = (4, 6)  # that `fewer_experts` chooses from
    fewer_blocks: float = 0.0
    droppable: tuple[int, ...] = ()  # blocks that `fewer_blocks` chooses from; empty for all after the fifth
    need_blocks: tuple[tuple[str, int], ...] = ()  # families, and how many blocks left out are too many: see `thin.py`
    need_experts: tuple[tuple[str, int], ...] = ()  # families, and how many experts are too few


COPIES = (3, 4, 5, 6, 8, 10, 12)
"""Blocks that looked dispensable one by one after `spread`: pairs that do the same, and one of each later pair."""

SECOND_HALVES = (4, 5, 7, 9, 11, 13, 15)
"""Blocks that may go after `narrow`: the second of each pair, and the weakest of the others."""

AFTER_THE_THIRD = tuple(range(3, 16))

# Comparing needs depth and adding needs width, reading neither: blocks and experts cost what a question asks for.
NEEDS = Stage(
    "needs",
    900,
    1.2e-3,
    1e-5,
    images=16,
    warmup=20,
    easy_share=0.25,
    inner_share=0.3,
    ideal_share=0.3,
    hint_weight=0.3,
    frozen_tower=True,
    slow_blocks=0,
    tier_shares=(0.12, 0.2, 0.68),
    weights=FINAL,
    max_router_norm=0.05,
    fewer_experts=0.4,
    fewer_blocks=0.5,
    droppable=SECOND_HALVES,
    need_blocks=(("compare", 3), ("extreme", 3), ("sum", 3), ("value", 3)),
    need_experts=(("sum", 4), ("value", 4)),
)

STAGES = (
    # The tower learns to name colours, shapes and digits before any question is asked.
    Stage("vision", 400, 2e-3, 1.452e-3, images=24, vision_only=True, large_only_steps=300),
    Stage("crowded", 1500, 1.5e-3, 2e-4, images=24, vision_only=True, crowded=True, easy_share=0.2),
    # Meanwhile (the two share no weights that either changes) the decoder learns to look up, to compare and to add.
    Stage("symbolic", 600, 2e-3, 1.655e-3, images=48, frozen_tower=True, ideal_share=1.0, easy_share=0.15, warmup=100),
    # The decoder meets the tower's own features. At the decoder's rate the tower forgot its digits within 100 steps;
    # and with slow first blocks, what is still to be learned is learned by later ones too.
    Stage("join", 100, 2e-3, 1.928e-3, images=48, vision_weight=0.5, easy_share=0.15, warmup=30, slow_blocks=5),
    # Side by side again: the tower learns small digits, ...
    Stage("digits", 700, 1e-3, 3.35e-4, images=24, vision_only=True, crowded=True, easy_share=0.1),
    # ... the decoder what it cannot do yet, on features that are ideal in half of the steps.
    Stage(
        "lookups",
        400,
        1.5e-3,
        1.345e-3,
        images=16,
        easy_share=0.1,
        ideal_share=0.6,
        hint_weight=0.5,
        frozen_tower=True,
        slow_blocks=5,
        weights=LOOKUPS,
    ),
    # Together again.
    Stage(
        "together",
        250,
        1.5e-3,
        8.25e-4,
        images=16,
        warmup=20,
        easy_share=0.15,
        ideal_share=0.3,
        vision_weight=1.0,
        hint_weight=0.5,
        slow_blocks=5,
        tier_shares=(0.2, 0.25, 0.55),
        weights=LOOKUPS,
    ),
    Stage(
        "reading",
        150,
        1.5e-3,
        1.407e-3,
        images=16,
        warmup=20,
        easy_share=0.15,
        ideal_share=0.3,
        vision_weight=1.0,
        hint_weight=0.5,
        slow_blocks=5,
        tier_shares=(0.15, 0.25, 0.6),
        weights=LOOKUPS,
    ),
    # Side by side once more.
    Stage("small_digits", 200, 1e-3, 8.6e-4, images=24, vision_only=True, crowded=True, easy_share=0.1),
    Stage("sharper_digits", 300, 8e-4, 4.49e-4, images=24, vision_only=True, crowded=True, easy_share=0.1),
    Stage(
        "reasoning",
        200,
        1.5e-3,
        1.417e-3,
        images=16,
        easy_share=0.12,
        ideal_share=0.6,
        hint_weight=0.5,
        frozen_tower=True,
        slow_blocks=5,
        tier_shares=(0.15, 0.3, 0.55),
        weights=LOOKUPS,
    ),
    Stage(
        "sums",
        400,
        1.4e-3,
        1.248e-3,
        images=16,
        easy_share=0.12,
        ideal_share=0.6,
        hint_weight=0.5,
        frozen_tower=True,
        slow_blocks=5,
        tier_shares=(0.15, 0.3, 0.55),
        weights=REASONING,
    ),
    # The last blocks did nothing by now, and four experts did as well as eight: the work is spread, then mended.
    Stage(
        "spread",
        50,
        1.5e-3,
        1.377e-3,
        images=16,
        warmup=20,
        easy_share=0.15,
        ideal_share=0.15,
        vision_weight=1.0,
        hint_weight=0.3,
        slow_blocks=0,
        tier_shares=(0.15, 0.25, 0.6),
        weights=FINAL,
        block_order=(0, 1, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 8, 9, 10, 12),
        max_router_norm=0.05,
    ),
    Stage(
        "settle",
        240,
        1.1e-3,
        1e-5,
        images=16,
        warmup=10,
        easy_share=0.15,
        ideal_share=0.1,
        vision_weight=1.0,
        hint_weight=0.3,
        slow_blocks=0,
        tier_shares=(0.15, 0.25, 0.6),
        weights=FINAL,
        max_router_norm=0.05,
    ),
    Stage(
        "polish",
        80,
        5e-4,
        1e-5,
        images=16,
        warmup=10,
        easy_share=0.45,
        ideal_share=0.0,
        vision_weight=1.0,
        hint_weight=0.3,
        slow_blocks=0,
        tier_shares=(0.15, 0.25, 0.6),
        weights=FINAL,
        max_router_norm=0.05,
    ),
    # Side by side a last time: the tower learns the small digits of the tiers that show them (the low tier's crop is in
    # every tier), at a falling rate, ...
    Stage(
        "fine_print",
        1050,
        8e-4,
        5.7e-5,
        images=24,
        vision_only=True,
        vision_tiers=("medium", "high"),
        crowded=True,
        easy_share=0.1,
    ),
    # ... the decoder to count and to find extremes, and to do with up to four blocks fewer.
    Stage(
        "counting",
        600,
        1.2e-3,
        8.78e-4,
        images=16,
        warmup=20,
        easy_share=0.15,
        ideal_share=0.75,
        hint_weight=0.3,
        frozen_tower=True,
        slow_blocks=0,
        tier_shares=(0.1, 0.2, 0.7),
        weights=COUNTING,
        max_router_norm=0.05,
        fewer_blocks=0.35,
        droppable=COPIES,
    ),
    # It counted the outer cards only, on ideal features too: few of the dataset's images have inner ones.
    Stage(
        "inner_cards",
        314,
        1e-3,
        7.39e-4,
        images=16,
        warmup=20,
        easy_share=0.12,
        inner_share=0.5,
        ideal_share=0.6,
        hint_weight=0.3,
        frozen_tower=True,
        slow_blocks=0,
        tier_shares=(0.08, 0.17, 0.75),
        weights=COUNTING,
        max_router_norm=0.05,
        fewer_blocks=0.35,
        droppable=COPIES,
    ),
    # Together on the tower's own features, down to a rate of nearly nothing.
    Stage(
        "gradual",
        340,
        8e-4,
        1e-5,
        images=16,
        warmup=20,
        easy_share=0.3,
        inner_share=0.3,
        vision_weight=1.0,
        hint_weight=0.3,
        slow_blocks=0,
        tier_shares=(0.12, 0.2, 0.68),
        weights=FINAL,
        max_router_norm=0.05,
        fewer_blocks=0.3,
        droppable=COPIES,
    ),
    # Seven blocks did next to nothing, and two experts did as well as eight. Those blocks become second halves of the
    # ones that work, experts keep a quarter of their neurons, and what that breaks is mended under the full plan.
    Stage(
        "narrow",
        400,
        1.5e-3,
        8e-4,
        images=16,
        warmup=20,
        easy_share=0.2,
        inner_share=0.3,
        ideal_share=0.4,
        hint_weight=0.3,
        frozen_tower=True,
        slow_blocks=0,
        tier_shares=(0.12, 0.2, 0.68),
        weights=FINAL,
        block_order=(0, 1, 2, 7, 7, 8, 9, 9, 11, 11, 13, 13, 14, 14, 15, 15),
        expert_width=8,
        max_router_norm=0.05,
    ),
    NEEDS,
    # Importance scores tell the two halves of a pair hardly apart, so any block after the third may be missing.
    replace(NEEDS, name="any_blocks", fewer_experts=0.5, top_ks=(2, 4, 6), droppable=AFTER_THE_THIRD),
    # By now twelve blocks cost comparing 20 points. More of the same, at a higher rate and mostly on thin plans.
    replace(
        NEEDS,
        name="thin_plans",
        steps=1100,
        lr=1.8e-3,
        easy_share=0.2,
        weights=THIN,
        fewer_experts=0.5,
        top_ks=(2, 4, 6),
        fewer_blocks=0.65,
        droppable=AFTER_THE_THIRD,
        need_blocks=(("compare", 2), ("extreme", 2), ("sum", 2), ("value", 2)),
    ),
    # Family by family, so that every block and expert fewer costs something.
    replace(
        NEEDS,
        name="priors",
        steps=800,
        lr=1.5e-3,
        easy_share=0.2,
        tier_shares=(0.15, 0.25, 0.6),
        weights=THIN,
        fewer_experts=0.5,
        fewer_blocks=0.6,
        droppable=AFTER_THE_THIRD,
        need_blocks=(("extreme", 2), ("value", 3), ("compare", 4)),
        need_experts=(("sum", 6), ("count", 4)),
    ),
)
SLOW = 0.15
"""Share of the learning rate for what should not forget."""
ROUTING_GAIN = 1.45
"""What eight experts lose when routing is held to 0.05, made good: their shares fall from 0.61 to 0.53 in all."""
