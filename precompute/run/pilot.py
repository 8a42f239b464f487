"""The pilot: times a few samples under the cheapest and the full setting, from which the budget grid follows."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean, median

import numpy as np

from ...data.budgets import budget_grid, normalise_budgets
from ...data.errors import KnobctlError
from ...data.knobs import KnobSetting
from ...data.samples import Sample
from ..execution.knob_model import KnobModel
from ..latency.block_times import PlanLatency, TimedPlan, measure_whole

PILOT_SAMPLES = 32
PILOT_RUNS = 3


@dataclass(frozen=True)
class Pilot:
    """Latencies of the pilot's samples, in ms, each a median over runs."""

    cheapest_ms: tuple[float, ...]
    full_ms: tuple[float, ...]

    def grid(self) -> tuple[float, ...]:
        """Returns the default grid: geometric, from the cheapest setting's median to the full one's 95th percentile."""
        return budget_grid(median(self.cheapest_ms), float(np.percentile(self.full_ms, 95)))

    @property
    def full_mean_ms(self) -> float:
        """The latency that budgets such as `0.5x` are multiples of."""
        return fmean(self.full_ms)


def cheapest_setting(knobs: KnobModel) -> KnobSetting:
    """Returns the setting of the first tier with the fewest experts and the fewest blocks that its position allows."""
    space, position = knobs.space, min(knobs.positions)
    num_blocks = min(setting.num_blocks for setting in space.settings if setting.insertion_position == position)
    return KnobSetting(space.tiers[0], position, min(space.top_k), num_blocks)


def full_setting(knobs: KnobModel) -> KnobSetting:
    """Returns the setting of the last tier with the most experts and blocks."""
    space = knobs.space
    return KnobSetting(space.tiers[-1], min(knobs.positions), max(space.top_k), max(space.num_blocks))


def run_pilot(
    knobs: KnobModel, samples: Sequence[Sample], *, seed: int, on_sample: Callable[[], None] = lambda: None
) -> Pilot:
    """Times up to 32 samples, drawn by seed, under both settings."""
    drawn = pilot_samples(samples, seed)
    cheapest, full = [], []
    for sample in drawn:
        cheapest.append(time_setting(knobs, sample, cheapest_setting(knobs), seed=seed).latency_ms)
        full.append(time_setting(knobs, sample, full_setting(knobs), seed=seed).latency_ms)
        on_sample()
    return Pilot(tuple(cheapest), tuple(full))


def pilot_samples(samples: Sequence[Sample], seed: int) -> list[Sample]:
    """Returns the samples of the pilot."""
    ordered = sorted(samples, key=lambda sample: sample.sample_id)
    return random.Random(f"pilot/{seed}").sample(ordered, min(PILOT_SAMPLES, len(ordered)))


def time_setting(
    knobs: KnobModel, sample: Sample, setting: KnobSetting, *, seed: int, runs: int = PILOT_RUNS
) -> PlanLatency:
    """Decodes one sample's answer under one setting, then times that answer end to end."""
    assert setting.insertion_position is not None, "a model's knob space has insertion positions"
    prepared, state = knobs.prepare_tier(sample, setting.tier)
    plan = knobs.plans[setting]
    tokens = knobs.answer(state, plan, knobs.task(sample))
    request = TimedPlan(plan, setting.insertion_position, len(tokens))
    return measure_whole(knobs, prepared, [request], runs=runs, draw=random.Random(seed))[0]


def parse_budgets(texts: Sequence[str], full_mean_ms: Callable[[], float]) -> tuple[float, ...]:
    """Returns normalised budgets from texts such as `25` (ms) and `0.5x` (half the mean latency of the full setting).

    Args:
        full_mean_ms: times the full setting; called once, and only if a text is a multiple.

    Raises:
        KnobctlError: a text is neither, or not positive.
    """
    full_mean_ms = cache(full_mean_ms)  # timing again would give another mean and could put the multiples out of order
    budgets = []
    for text in (part.strip() for item in texts for part in item.split(",")):
        try:
            value = float(text.removesuffix("x"))
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value > 0):
            raise KnobctlError(
                f"budget {text!r} is neither milliseconds such as 25 nor a multiple of the full setting's latency "
                "such as 0.5x."
            )
        budgets.append(value * full_mean_ms() if text.endswith("x") else value)
    budgets_ms = normalise_budgets(round(budget, 3) for budget in budgets)
    if budgets_ms[0] <= 0:
        raise KnobctlError("a budget is below one microsecond: budgets are in milliseconds.")
    return budgets_ms
