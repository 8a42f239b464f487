"""The latency budget of a request: from its headers, its body, or the server's default."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from .refusal import Refusal

if TYPE_CHECKING:  # a library of the extra
    from starlette.datastructures import Headers

BUDGET_HEADER = "x-knobctl-budget-ms"
TTFT_HEADER = "x-llm-d-slo-ttft-ms"  # time to the first token, as llm-d's gateway names it
TPOT_HEADER = "x-llm-d-slo-tpot-ms"  # time for each further token
MIN_BUDGET_MS = 1.0  # budgets are rounded down to whole ms
MAX_BUDGET_MS = 3_600_000.0

_NUMBER = re.compile(r"[0-9]{1,12}(\.[0-9]{1,12})?")


def request_budget_ms(headers: Headers, body_ms: float | None, default_ms: float | None, max_tokens: int) -> float:
    """Returns the budget in ms: the header's, else the body's, else from the two SLO headers, else the default.

    Args:
        max_tokens: the most tokens the answer may have; the SLO headers give ttft + tpot * (max_tokens - 1).

    Raises:
        Refusal: a budget that is not a number of ms in range, one SLO header without the other, or no budget at all.
    """
    header_ms, ttft_ms, tpot_ms = (_header_ms(headers, name) for name in (BUDGET_HEADER, TTFT_HEADER, TPOT_HEADER))
    if header_ms is not None:
        return _checked(header_ms, BUDGET_HEADER)
    if body_ms is not None:
        return _checked(body_ms, "budget_ms")
    if (ttft_ms is None) != (tpot_ms is None):
        given, missing = (TPOT_HEADER, TTFT_HEADER) if ttft_ms is None else (TTFT_HEADER, TPOT_HEADER)
        raise _refusal(missing, f"is missing: {given} is only used together with it")
    if ttft_ms is not None and tpot_ms is not None:
        return _checked(ttft_ms + tpot_ms * (max_tokens - 1), f"{TTFT_HEADER} with {TPOT_HEADER}", TTFT_HEADER)
    if default_ms is not None:
        return default_ms
    raise _refusal("budget_ms", f"is missing: send it in the body, or the header {BUDGET_HEADER}")


def check_budget_ms(value: float) -> bool:
    """Returns whether a number can be a budget."""
    return math.isfinite(value) and MIN_BUDGET_MS <= value <= MAX_BUDGET_MS


def _header_ms(headers: Headers, name: str) -> float | None:
    values = headers.getlist(name)
    if not values:
        return None
    if len(values) > 1 or not _NUMBER.fullmatch(values[0].strip()):
        raise _refusal(name, "must be one number of ms, such as 25")
    return float(values[0])


def _checked(value: float, source: str, param: str | None = None) -> float:
    if not check_budget_ms(value):
        raise _refusal(param or source, f"must be from {MIN_BUDGET_MS:g} to {MAX_BUDGET_MS:.0f} ms", source)
    return value


def _refusal(param: str, problem: str, source: str | None = None) -> Refusal:
    return Refusal(400, f"{source or param} {problem}.", param=param, code="invalid_budget")
