"""The stages of nano's training, in order, each with its purpose."""

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
    easy_share: float = 0.3  # share of images from easy_vqa
    warmup: int = 50
    vision_only: bool = False  # train only the vision tower, on each of `vision_tiers` in every step
    vision_tiers: tuple[str, ...] = ("low", "medium", "high")
    frozen_tower: bool = False  # do not train the tower and the word embeddings
    ideal_share: float = 0.0  # share of steps with ideal features
    crowded: bool = False  # a card in nearly every place, to learn more from each image
    inner_share: float = 0.0  # share of images with more inner cards than in the dataset
    large_only_steps: int = 0  # first steps only with cards that are legible in every tier
    vision_weight: float = 0.1  # weight of the vision loss relative to the answer loss
    hint_weight: float = 0.0  # weight of the hints relative to the answer loss: see `hint_loss`
    tier_shares: tuple[float, float, float] = (0.25, 0.3, 0.45)
    weights: tuple[tuple[str, float], ...] = ()  # shares of question families; empty for the dataset's
    slow_blocks: int | None = None  # tower, word embeddings and this many first blocks learn at SLOW times the rate
    block_order: tuple[int, ...] = ()  # rearrange the blocks before the stage: see `repeat_blocks`
    expert_width: int | None = None  # neurons that experts keep before the stage: see `narrow_experts`
    max_router_norm: float = 0.3  # largest norm of router rows: see `bound_routers`
    fewer_experts: float = 0.0
    top_ks: tuple[int, ...] = (4, 6)  # values that `fewer_experts` chooses from
    fewer_blocks: float = 0.0
    droppable: tuple[int, ...] = ()  # blocks that `fewer_blocks` chooses from; empty for all after the fifth
    need_blocks: tuple[
        tuple[str, int], ...
    ] = ()  # family, number of omitted blocks that is too many: see `prior_answers.py`
    need_experts: tuple[tuple[str, int], ...] = ()  # family, number of experts that is too few


COPIES = (3, 4, 5, 6, 8, 10, 12)
"""Blocks that looked dispensable one at a time after `spread`: equivalent pairs, and one block of each later pair."""

SECOND_HALVES = (4, 5, 7, 9, 11, 13, 15)
"""Blocks that may be left out after `narrow`: the second of each pair, and the weakest of the others."""

AFTER_THE_THIRD = tuple(range(3, 16))

# Comparing needs depth, adding needs width, reading needs neither, so the cost of a setting depends on the question.
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
    # The tower learns to name colours, shapes and digits before there are questions.
    Stage("vision", 400, 2e-3, 1.452e-3, images=24, vision_only=True, large_only_steps=300),
    Stage("crowded", 1500, 1.5e-3, 2e-4, images=24, vision_only=True, crowded=True, easy_share=0.2),
    # In parallel (the two stages change no common weights), the decoder learns to look up, compare and add.
    Stage("symbolic", 600, 2e-3, 1.655e-3, images=48, frozen_tower=True, ideal_share=1.0, easy_share=0.15, warmup=100),
    # The decoder is trained on the tower's own features. At the decoder's learning rate the tower forgot its digits
    # within 100 steps; with slow first blocks, later blocks learn too.
    Stage("join", 100, 2e-3, 1.928e-3, images=48, vision_weight=0.5, easy_share=0.15, warmup=30, slow_blocks=5),
    # In parallel again: the tower learns small digits, ...
    Stage("digits", 700, 1e-3, 3.35e-4, images=24, vision_only=True, crowded=True, easy_share=0.1),
    # ... and the decoder learns the remaining families, with ideal features in more than half of the steps.
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
    # Both together again.
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
    # In parallel once more.
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
    # At this point the last blocks had no effect and four experts were as good as eight: the work is spread, and
    # training recovers the accuracy.
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
    # In parallel a last time: the tower learns the small digits in the tiers that show them (the low tier's crop is in
    # every tier), with a decreasing learning rate, ...
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
    # ... and the decoder learns to count, to find extremes, and to manage with up to four blocks fewer.
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
    # It counted only outer cards, even with ideal features, because few images of the dataset have inner ones.
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
    # Both together on the tower's own features, down to a learning rate near zero.
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
    # Seven blocks had almost no effect, and two experts were as good as eight. Those blocks become second halves of
    # useful ones, experts keep a quarter of their neurons, and training under the full plan recovers the accuracy.
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
    # The two halves of a pair have similar importance scores, so any block after the third may be left out.
    replace(NEEDS, name="any_blocks", fewer_experts=0.5, top_ks=(2, 4, 6), droppable=AFTER_THE_THIRD),
    # At this point, twelve blocks cost `compare` 20 points. The same again at a higher rate, mostly on reduced plans.
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
    # With different limits for each family, so that every block and expert matters.
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
"""Factor on the learning rate of weights that should change slowly."""
ROUTING_GAIN = 1.45
"""Compensates for limiting router rows to 0.05, which reduces the total weight of eight experts from 0.61 to 0.53."""
