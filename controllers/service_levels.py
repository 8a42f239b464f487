"""Service levels: the share of requests that must keep its budget, and the budget factor that guarantees it.

With budget factor f, controllers choose only among settings whose expected latency is at most f times the budget. A
smaller factor keeps more budgets and costs reward. The factor of a level is found by *learn then test* (Angelopoulos et
al., 2021, "Learn then Test: Calibrating Predictive Algorithms to Achieve Risk Control") with fixed-sequence testing:
factors are tested in ascending order, and the last one before the first that fails the test is used.

The guarantee: over draws of the calibration images, with probability at least 1 - DELTA, the share of requests that
keep their budget, among those that some setting can meet, is at least the level. A request is drawn by drawing an image
and then one of its requests. It holds for requests that are exchangeable with the calibration requests, on the device
that was calibrated, without queueing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..data.errors import CheckpointError
from ..data.files.json_fields import JsonFields

LEVELS = (0.90, 0.95, 0.99)
DELTA = 0.05  # largest probability that a calibrated factor misses its level
FACTORS = tuple(round(0.50 + 0.02 * step, 2) for step in range(51))  # 0.50, 0.52, ..., 1.50; fixed before any data


@dataclass(frozen=True)
class ServiceLevel:
    """The calibration of one level.

    Args:
        budget_factor: None: no factor passed the test, so the level cannot be promised.
        images: calibration images with at least one request that some setting can meet.
        kept: of the requests drawn, one from each image, those that kept their budget under `budget_factor`, or under
            the smallest factor if none passed.
    """

    level: float
    budget_factor: float | None
    images: int
    kept: int

    def refusal(self) -> str | None:
        """Returns why the level cannot be promised, and what to do; None if it can."""
        if self.budget_factor is not None:
            return None
        needed = least_images(self.level)
        if self.images < needed:
            return (
                f"keeping {self.level:g} of the budgets needs at least {needed} calibration images (half of the split "
                f"`val`), and the cache had {self.images}: ask for a lower level, or train on a cache with more samples"
            )
        return (
            f"keeping {self.level:g} of the budgets cannot be promised: even with the tightest budget factor "
            f"{self.kept} of {self.images} calibration requests kept theirs. Ask for a lower level"
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_fields(cls, fields: JsonFields) -> ServiceLevel:
        """Reads what `to_dict` writes. Raises the error of `fields`, with file and field."""
        level = fields.number("level")
        if level not in LEVELS:
            raise fields.fail("level", f"must be one of {', '.join(map(str, LEVELS))}, not {level!r}")
        factor = fields.optional("budget_factor", JsonFields.positive)
        return cls(level, factor, fields.count("images"), fields.count("kept"))


@dataclass(frozen=True)
class Calibration:
    """The service levels of one set of controllers.

    Args:
        controllers_ms: the controllers' own time for one request, which counts against every budget; median.
    """

    controllers_ms: float
    levels: tuple[ServiceLevel, ...]

    def budget_factor(self, within: float) -> float:
        """Returns the budget factor of a level. Raises CheckpointError, with the reason, if it cannot be promised."""
        for level in self.levels:
            if level.level == within:
                reason = level.refusal()
                if reason is not None:
                    raise CheckpointError(reason)
                assert level.budget_factor is not None
                return level.budget_factor
        known = ", ".join(f"{level.level:g}" for level in self.levels)
        raise CheckpointError(f"no budget factor was calibrated for --within {within:g}: choose from {known}")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_fields(cls, fields: JsonFields) -> Calibration:
        """Reads what `to_dict` writes. Raises the error of `fields`, with file and field."""
        levels = fields.each("levels", lambda inner, name: ServiceLevel.from_fields(inner.fields(name)))
        return cls(fields.positive("controllers_ms"), tuple(levels))


def least_images(level: float, delta: float = DELTA) -> int:
    """Returns how many images a level needs to pass if all of them keep their budget: level^n <= delta."""
    return math.ceil(math.log(delta) / math.log(level))


def p_value(kept: int, images: int, level: float) -> float:
    """Returns the probability of at most `images - kept` misses if the share kept were exactly `level`: binomial.

    The calibration requests are independent, one from each image, so this is exact.
    """
    log_miss, log_keep = math.log(1.0 - level), math.log(level)

    def probability(missed: int) -> float:
        log_ways = math.lgamma(images + 1) - math.lgamma(missed + 1) - math.lgamma(images - missed + 1)
        return math.exp(log_ways + missed * log_miss + (images - missed) * log_keep)

    return min(1.0, math.fsum(map(probability, range(images - kept + 1))))


def calibrated_level(level: float, kept_F: Sequence[int], images: int) -> ServiceLevel:
    """Tests the factors of `FACTORS` in order, from the number of requests that keep their budget under each."""
    passed = -1
    if images:
        for place, kept in enumerate(kept_F):
            if p_value(kept, images, level) > DELTA:
                break
            passed = place
    factor = FACTORS[passed] if passed >= 0 else None
    return ServiceLevel(level, factor, images, kept_F[max(passed, 0)] if images else 0)
