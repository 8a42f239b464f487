"""Latency budgets in ms, as the cache stores and compares them: float32 values, ascending and distinct."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

DEFAULT_BUDGETS = 16


def float32_ms(budget_ms: float) -> float:
    """Returns the budget rounded to float32, in which budgets are compared."""
    return float(np.float32(budget_ms))


def normalise_budgets(budgets_ms: Iterable[float]) -> tuple[float, ...]:
    """Returns the budgets as float32 values, ascending, each one once."""
    return tuple(sorted({float32_ms(budget) for budget in budgets_ms}))


def budget_grid(low_ms: float, high_ms: float, count: int = DEFAULT_BUDGETS) -> tuple[float, ...]:
    """Returns up to `count` budgets in ms: geometric from `low_ms` to `high_ms`, rounded to whole ms, normalised.

    Whole ms are easy to type and exact in float32. Rounding can make neighbours equal, so a narrow range gives fewer
    than `count` budgets. The smallest budget is 1 ms. The ends may be given in either order.
    """
    if not (math.isfinite(low_ms) and math.isfinite(high_ms) and low_ms > 0 and high_ms > 0 and count >= 1):
        raise ValueError(f"a grid needs positive, finite ends and at least one budget: {low_ms}, {high_ms}, {count}")
    low_ms, high_ms = sorted((low_ms, high_ms))
    return normalise_budgets(np.maximum(np.rint(np.geomspace(low_ms, high_ms, count)), 1.0))
