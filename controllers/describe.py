"""The summary of a checkpoint that `knobctl inspect` shows."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..data.errors import CheckpointError
from .checkpoint import Controllers


def describe_controllers(path: Path | str) -> dict[str, Any]:
    """Reads and checks a checkpoint; returns model, knobs, conditions and expected latencies as JSON.

    Raises CheckpointError, naming file and field, for what does not conform to the format.
    """
    controllers = Controllers.from_pretrained(path)
    expected = controllers.expected_latency
    try:
        controllers.require_answerable(str(path))
        lacks = None
    except CheckpointError as problem:
        lacks = str(problem)
    conditions = controllers.conditions.to_dict()
    tasks, importance = conditions.pop("tasks"), conditions.pop("importance")
    return {
        "path": controllers.source,
        "created_by": controllers.created_by,
        "cache_fingerprint": controllers.cache_fingerprint,
        "budgets_ms": list(controllers.budgets_ms),
        "cannot_answer": lacks,
        "model": asdict(controllers.model),
        "knobs": controllers.space.to_dict(),
        "parameters": controllers.parameter_counts(),
        "tasks": tasks,
        "conditions": conditions,
        "importance": importance,
        "expected_latency": None if expected is None else expected.to_dict(),
        "calibration": None if controllers.calibration is None else controllers.calibration.to_dict(),
        "settings": controllers.settings,
    }
