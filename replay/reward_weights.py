"""Weights of the reward. Needs no torch, so that the command line can offer them as options."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field


@dataclass(frozen=True)
class RewardWeights:
    """Weights of the terms, named as in the formula of `reward_terms` in `reward.py`."""

    alpha: float = field(default=1.0, metadata={"help": "Weight of accuracy in the reward, 0 or more."})
    beta: float = field(
        default=0.5, metadata={"help": "Weight of the soft penalty for exceeding the budget in the reward, 0 or more."}
    )
    gamma: float = field(
        default=10.0, metadata={"help": "Weight of the squared overrun of the budget in the reward, 0 or more."}
    )
    delta: float = field(
        default=0.1, metadata={"help": "Weight of the unused part of the budget in the reward, 0 or more."}
    )
    epsilon: float = field(default=0.05, metadata={"help": "Weight of complexity in the reward, 0 or more."})

    def to_dict(self) -> dict[str, float]:
        return asdict(self)
