"""The verdicts of a report in words: one sentence for each comparison of a subject over all samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..policies.registry import BASELINES
from .report import NOT_SHOWN, OVERALL


def verdict_sentences(record: Mapping[str, Any]) -> Iterator[tuple[str | None, str]]:
    """Yields the verdict, None without an interval, and the sentence for each comparison of a report's `to_dict`."""
    for comparison in record["comparisons"]:
        if comparison["group"] != OVERALL or comparison["policy"] not in record["subjects"]:
            continue
        reward, policy = comparison["differences"]["reward"], comparison["policy"]
        other = comparison["versus"]
        other = BASELINES[other].label if other in BASELINES else other
        if reward["low"] is None:
            yield None, f"{policy} vs {other}: reward {reward['value']:+.4f}, no interval can be given"
            continue
        numbers = f"reward {reward['value']:+.4f} [{reward['low']:+.4f}, {reward['high']:+.4f}]"
        numbers += f", adjusted p = {comparison['adjusted_p_value']:.3f}"
        if comparison["verdict"] == NOT_SHOWN:
            yield NOT_SHOWN, f"{policy} {verb(policy)} NOT shown to differ from {other}: {numbers}"
        else:
            yield comparison["verdict"], f"{policy} {verb(policy)} {comparison['verdict']} than {other}: {numbers}"


def verb(policy: str) -> str:
    """Returns the verb that follows a policy's name: `controllers` is a plural, a directory's name is not."""
    return "are" if policy.split(" ")[0] == "controllers" else "is"
