"""Every setting of a training run, and the two recipes. `docs/training.md` keeps what was tried and what it gave."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from ..data.errors import KnobctlError
from .reward import RewardWeights

ESTIMATORS = ("grpo", "exact")
SCALE_REWARDS = ("group", "batch", "none")
FULL_LR = 5e-3  # from this many training samples on; a share of it below
FULL_LR_SAMPLES = 8000
LEAST_LR_SHARE = 0.2


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise KnobctlError(f"training settings: {message}")


@dataclass(frozen=True)
class TrainConfig:
    """How controllers are trained. The defaults are the recipe `tuned`."""

    recipe: str = "tuned"
    seeds: tuple[int, ...] = (42,)  # trained side by side; the same cache and seed give the same controllers
    epochs: int = 60  # an epoch takes each training sample once, with one budget drawn for it
    min_steps: int = 400  # small caches take as many epochs as that needs
    warm_start_steps: int = 400  # begin at a table per dataset: see warm_start.py; 0 begins at even chances
    batch_size: int = 256  # requests (a sample under a budget) a step
    lr: float | None = None  # None: by the size of the training split, see lr_for
    stage1_lr_ratio: float = 1.0  # Stage1 learns at lr * stage1_lr_ratio
    lr_schedule: str = "cosine"  # cosine (after a linear warm-up) or constant
    warmup_share: float = 0.05
    weight_decay: float = 0.01
    decoupled_weight_decay: bool = True  # AdamW; False is Adam with the decay in the gradient
    max_grad_norm: float | None = None
    # GRPO, by the names that the field uses
    estimator: str = "grpo"  # grpo, or exact: the expected reward summed over every setting
    group_size: int = 5  # draws in a group
    scale_rewards: str = "none"  # divide advantages by the standard deviation of the group, of the batch, or by nothing
    advantage_clip: float | None = 1.0  # bounds what one disaster (a budget missed by far) weighs against answers won
    epsilon: float = 0.2  # clip of the probability ratio; acts from the second iteration on
    beta: float = 0.0  # weight of the KL divergence from the initial policy
    num_iterations: int = 1  # updates per drawn batch
    entropy_bonus: float = 0.0  # at the end of training
    entropy_bonus_start: float = 0.05  # falls linearly to entropy_bonus
    # Selection
    ema_decay: float = 0.98  # what is selected and saved is this running mean of the weights; 0 is the weights
    evaluations: int = 30  # greedy evaluations on val, evenly spaced over the epochs
    patience: int | None = None  # evaluations without a better one before a seed stops; None: never
    # Inputs
    basis_rows: int = 2  # budgets drawn of each sample and place to fit the token basis
    train_budget_encoder: bool = False  # Stage1's copy learns; the one behind the latency tokens stays as cached
    allow_constant_accuracy: bool = False  # train although accuracy is the same for all samples and settings
    device: str = "cpu"
    log_interval: int = 50  # steps between lines of the log
    reward_weights: RewardWeights = field(default_factory=RewardWeights)

    def __post_init__(self) -> None:
        for name in (
            "epochs",
            "batch_size",
            "group_size",
            "num_iterations",
            "evaluations",
            "basis_rows",
            "log_interval",
        ):
            _require(getattr(self, name) >= 1, f"{name} must be at least 1, not {getattr(self, name)}")
        _require(self.lr is None or 0 < self.lr < math.inf, f"lr must be above 0, not {self.lr}")
        for name in ("stage1_lr_ratio", "epsilon"):
            _require(0 < getattr(self, name) < math.inf, f"{name} must be above 0, not {getattr(self, name)}")
        for name in (
            "weight_decay",
            "beta",
            "entropy_bonus",
            "entropy_bonus_start",
            "warmup_share",
            "min_steps",
            "warm_start_steps",
        ):
            _require(0 <= getattr(self, name) < math.inf, f"{name} must not be negative: {getattr(self, name)}")
        _require(self.patience is None or self.patience >= 1, f"patience must be at least 1, not {self.patience}")
        norm = self.max_grad_norm
        _require(norm is None or 0 < norm < math.inf, f"max_grad_norm must be above 0, not {norm}")
        weights = self.reward_weights.to_dict()
        _require(all(map(math.isfinite, weights.values())), f"reward weights must be finite numbers, not {weights}")
        negative = [f"{name} {weight:g}" for name, weight in weights.items() if weight < 0]
        _require(not negative, f"reward weights must not be negative: {', '.join(negative)}")
        _require(
            any(weights.values()), "all reward weights are 0: every choice earns the same, so nothing can be learned"
        )
        _require(0 <= self.ema_decay < 1, f"ema_decay must lie in [0, 1), not {self.ema_decay}")
        _require(self.estimator in ESTIMATORS, f"estimator is one of {list(ESTIMATORS)}, not {self.estimator!r}")
        _require(self.scale_rewards in SCALE_REWARDS, f"scale_rewards is one of {list(SCALE_REWARDS)}")
        _require(self.lr_schedule in ("cosine", "constant"), "lr_schedule is cosine or constant")
        _require(
            len(self.seeds) > 0 and len(set(self.seeds)) == len(self.seeds), "seeds must be distinct, at least one"
        )
        _require(all(0 <= seed < 2**63 for seed in self.seeds), "seeds must be whole numbers, not negative")
        _require(self.advantage_clip is None or self.advantage_clip > 0, "advantage_clip must be above 0")
        single = len(self.seeds) == 1 or not self.train_budget_encoder
        _require(single, "train_budget_encoder takes one seed at a time: give one")
        grouped = self.estimator == "exact" or self.group_size >= 2
        _require(
            grouped, "group_size is 1, and GRPO compares draws within a group: give at least 2, or estimator exact"
        )
        on_policy = self.estimator == "grpo" or (self.num_iterations == 1 and self.beta == 0)
        _require(on_policy, "num_iterations and beta belong to the grpo estimator: the exact one draws nothing")

    def epochs_for(self, samples: int) -> int:
        """Returns how many epochs a training split of this size takes."""
        steps = math.ceil(samples / self.batch_size)
        return max(self.epochs, math.ceil(self.min_steps / steps))

    def lr_for(self, samples: int) -> float:
        """Returns the peak learning rate on a training split of this size.

        Without one given it goes with the square root of the size, between 1e-3 and 5e-3: what suits thousands of
        samples makes networks follow the luck of a few hundred (docs/training.md has the figures).
        """
        if self.lr is not None:
            return self.lr
        return FULL_LR * min(1.0, max(LEAST_LR_SHARE, math.sqrt(samples / FULL_LR_SAMPLES)))

    def to_dict(self) -> dict[str, Any]:
        record = asdict(self)
        record["seeds"] = list(self.seeds)
        return record

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> TrainConfig:
        """The opposite of `to_dict`. Raises KnobctlError for names that it does not know."""
        known = {item.name for item in fields(cls)}
        _require(set(record) <= known, f"unknown training settings {sorted(set(record) - known)}")
        values = dict(record)
        if "seeds" in values:
            values["seeds"] = tuple(values["seeds"])
        if isinstance(values.get("reward_weights"), Mapping):
            values["reward_weights"] = RewardWeights(**values["reward_weights"])
        return cls(**values)


TUNED = TrainConfig()

# The original's values: see section 6 of the design.
CLASSIC = TrainConfig(
    recipe="classic",
    seeds=(42,),
    epochs=100,
    min_steps=0,
    warm_start_steps=0,
    batch_size=8,
    lr=1e-4,
    stage1_lr_ratio=1.0,
    lr_schedule="constant",
    warmup_share=0.0,
    weight_decay=1e-5,
    decoupled_weight_decay=False,
    group_size=5,
    scale_rewards="group",
    advantage_clip=None,
    entropy_bonus=0.0,
    entropy_bonus_start=0.0,
    ema_decay=0.0,
    evaluations=10,
)

RECIPES = {"tuned": TUNED, "classic": CLASSIC}


def recipe(name: str, **changes: Any) -> TrainConfig:
    """Returns a recipe with some settings changed; None leaves a setting as the recipe has it."""
    _require(name in RECIPES, f"recipe {name!r} is none of {list(RECIPES)}")
    return replace(RECIPES[name], **{key: value for key, value in changes.items() if value is not None})
