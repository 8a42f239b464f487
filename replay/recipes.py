"""Every setting of a training run, and the two recipes. `docs/development/training.md` gives the reasons."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from ..data.errors import KnobctlError
from .reward import RewardWeights

ESTIMATORS = ("grpo", "exact")
LR_SCHEDULES = ("cosine", "constant")
SCALE_REWARDS = ("group", "batch", "none")
FULL_LR = 5e-3  # learning rate for FULL_LR_SAMPLES training samples or more; scaled down below
FULL_LR_SAMPLES = 8000
MIN_LR_SHARE = 0.2
# Settings that no command offers as an option.
RECIPE_ONLY = frozenset({"min_steps", "warm_start_steps", "warmup_share", "decoupled_weight_decay", "basis_rows"})


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise KnobctlError(f"training settings: {message}")


def _setting(
    default: Any,
    help_text: str,
    *,
    choices: tuple[str, ...] | None = None,
    least: float | None = None,
    above: float | None = None,
) -> Any:
    """Returns a field with its help text and valid values.

    The metadata holds `help` and, where given, `choices`, `least` (smallest valid value) and `above` (exclusive lower
    bound). Values with a lower bound must be finite. The command line generates its options from it.
    """
    limits = {"choices": choices, "least": least, "above": above}
    metadata = {"help": help_text, **{name: limit for name, limit in limits.items() if limit is not None}}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class TrainConfig:
    """How controllers are trained. The defaults are the recipe `tuned`.

    Raises KnobctlError, naming the setting, for values with which nothing can be learned.
    """

    recipe: str = _setting("tuned", "tuned, or classic: the values of the original.")
    seeds: tuple[int, ...] = _setting((42,), "Seeds, trained side by side; the same cache and seed repeat exactly.")
    epochs: int = _setting(60, "Passes over the training samples, each sample with one random budget.", least=1)
    min_steps: int = _setting(400, "Optimizer steps at least; small caches run more epochs to reach it.", least=0)
    warm_start_steps: int = _setting(
        400, "Steps that fit a look-up table per dataset before training; 0 starts from uniform choices.", least=0
    )
    batch_size: int = _setting(256, "Requests (a sample under a budget) in a step.", least=1)
    lr: float | None = _setting(
        None, "Peak learning rate.  [default: depends on the number of training samples]", above=0
    )
    stage1_lr_ratio: float = _setting(1.0, "Learning rate of Stage1 relative to lr.", above=0)
    lr_schedule: str = _setting("cosine", "cosine decay after a linear warm-up, or constant.", choices=LR_SCHEDULES)
    warmup_share: float = _setting(0.05, "Share of the steps in the linear warm-up of the cosine schedule.", least=0)
    weight_decay: float = _setting(0.01, "Weight decay.", least=0)
    decoupled_weight_decay: bool = _setting(
        True, "AdamW; without it, Adam with the weight decay added to the gradient."
    )
    max_grad_norm: float | None = _setting(None, "Clip the gradient to this norm.  [default: no clipping]", above=0)
    # GRPO, in the usual terms
    estimator: str = _setting(
        "grpo",
        "grpo: gradient from sampled choices; exact: from the expected reward over all settings.",
        choices=ESTIMATORS,
    )
    group_size: int = _setting(5, "Draws in a group, at least 2 (1 with the exact estimator).", least=1)
    scale_rewards: str = _setting(
        "none",
        "Divide advantages by the standard deviation of the group, of the batch, or not at all.",
        choices=SCALE_REWARDS,
    )
    # Limits the weight of a single large overrun of the budget relative to correct answers.
    advantage_clip: float | None = _setting(1.0, "Largest absolute value of an advantage.")
    epsilon: float = _setting(
        0.2, "Clip range of the probability ratio; has an effect with num_iterations above 1.", above=0
    )
    beta: float = _setting(0.0, "Weight of the KL divergence from the initial policy.", least=0)
    num_iterations: int = _setting(1, "Updates per sampled batch.", least=1)
    entropy_bonus: float = _setting(0.0, "Entropy bonus at the end of training.", least=0)
    entropy_bonus_start: float = _setting(
        0.05, "Entropy bonus at the start of training; decays linearly to entropy_bonus.", least=0
    )
    # Selection
    ema_decay: float = _setting(
        0.98, "Decay of the moving average of the weights, which is evaluated and saved; 0: the weights themselves."
    )
    evaluations: int = _setting(
        30,
        "Greedy evaluations on val, evenly spaced. The last weights are kept unless earlier ones were better by more "
        "than one standard error.",
        least=1,
    )
    patience: int | None = _setting(
        None, "Stop a seed after this many evaluations without improvement.  [default: never]", least=1
    )
    # Inputs
    basis_rows: int = _setting(2, "Budgets drawn per sample, tier and position to fit the token basis.", least=1)
    train_budget_encoder: bool = _setting(
        False, "Train Stage1's copy of the budget encoder; the copy behind the latency tokens stays frozen."
    )
    allow_constant_accuracy: bool = _setting(
        False, "Train on latency alone if accuracy is the same for all samples and settings."
    )
    device: str = _setting("cpu", "cpu or cuda.")
    log_interval: int = _setting(50, "Steps between lines of the log.", least=1)
    reward_weights: RewardWeights = field(
        default_factory=RewardWeights, metadata={"help": "Weights of the terms of the reward, 0 or more."}
    )

    def __post_init__(self) -> None:
        for item in fields(self):
            _check_limits(item.name, getattr(self, item.name), item.default is None, item.metadata)
        weights = self.reward_weights.to_dict()
        _require(all(map(math.isfinite, weights.values())), f"reward weights must be finite numbers, not {weights}")
        negative = [f"{name} {weight:g}" for name, weight in weights.items() if weight < 0]
        _require(not negative, f"reward weights must not be negative: {', '.join(negative)}")
        _require(
            any(weights.values()), "all reward weights are 0: every choice has the same reward, so nothing is learned"
        )
        _require(0 <= self.ema_decay < 1, f"ema_decay must lie in [0, 1), not {self.ema_decay}")
        _require(
            len(self.seeds) > 0 and len(set(self.seeds)) == len(self.seeds), "seeds must be distinct, at least one"
        )
        _require(all(0 <= seed < 2**63 for seed in self.seeds), "seeds must be non-negative integers")
        _require(self.advantage_clip is None or self.advantage_clip > 0, "advantage_clip must be above 0")
        single = len(self.seeds) == 1 or not self.train_budget_encoder
        _require(single, "train_budget_encoder works with one seed only: give one seed")
        grouped = self.estimator == "exact" or self.group_size >= 2
        _require(
            grouped, "group_size is 1, and GRPO compares draws within a group: give at least 2, or estimator exact"
        )
        on_policy = self.estimator == "grpo" or (self.num_iterations == 1 and self.beta == 0)
        _require(on_policy, "num_iterations and beta apply to the grpo estimator only: the exact one draws nothing")

    def epochs_for(self, samples: int) -> int:
        """Returns the number of epochs for this many training samples."""
        steps = math.ceil(samples / self.batch_size)
        return max(self.epochs, math.ceil(self.min_steps / steps))

    def lr_for(self, samples: int) -> float:
        """Returns the peak learning rate for this many training samples.

        If `lr` is None, it grows with the square root of their number, from 1e-3 to 5e-3: with few samples, a high
        learning rate fits noise (docs/development/training.md has the figures).
        """
        if self.lr is not None:
            return self.lr
        return FULL_LR * min(1.0, max(MIN_LR_SHARE, math.sqrt(samples / FULL_LR_SAMPLES)))

    def to_dict(self) -> dict[str, Any]:
        record = asdict(self)
        record["seeds"] = list(self.seeds)
        return record

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> TrainConfig:
        """Inverse of `to_dict`. Raises KnobctlError for unknown names."""
        known = {item.name for item in fields(cls)}
        _require(set(record) <= known, f"unknown training settings {sorted(set(record) - known)}")
        values = dict(record)
        if "seeds" in values:
            values["seeds"] = tuple(values["seeds"])
        if isinstance(values.get("reward_weights"), Mapping):
            values["reward_weights"] = RewardWeights(**values["reward_weights"])
        return cls(**values)


def _check_limits(name: str, value: Any, optional: bool, metadata: Mapping[str, Any]) -> None:
    """Raises KnobctlError for a value that the field's metadata does not allow."""
    if optional and value is None:
        return
    if "choices" in metadata:
        _require(value in metadata["choices"], f"{name} is one of {list(metadata['choices'])}, not {value!r}")
    if "least" in metadata:
        _require(metadata["least"] <= value < math.inf, f"{name} must be at least {metadata['least']}, not {value}")
    if "above" in metadata:
        _require(metadata["above"] < value < math.inf, f"{name} must be above {metadata['above']}, not {value}")


TUNED = TrainConfig()

# The values of the original system.
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
    """Returns a recipe with some settings changed; None keeps the recipe's own value."""
    _require(name in RECIPES, f"recipe is one of {list(RECIPES)}, not {name!r}")
    return replace(RECIPES[name], **{key: value for key, value in changes.items() if value is not None})
