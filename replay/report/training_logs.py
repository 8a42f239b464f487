"""The evaluations that a training run logged, read from beside the controllers. The files are untrusted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ...data.errors import CheckpointError
from ...data.files.bounded_json import read_json
from ..training.log import LOG_NAME, read_log
from ..training.train import REPORT_NAME


class Evaluation(NamedTuple):
    """Greedy choices on `val`, at the end of an epoch."""

    epoch: int
    reward: float  # mean over samples and budgets


class TrainingLog(NamedTuple):
    """The run that made one set of controllers."""

    name: str  # of the controllers in the report
    seed: int
    estimator: str  # grpo or exact
    evaluations: tuple[Evaluation, ...]
    best_epoch: int  # 0: no checkpoint beat the warm start
    val_table_reward: float | None
    val_oracle_reward: float | None


def read_training_log(name: str, path: Path, settings: Mapping[str, Any]) -> TrainingLog | None:
    """Returns the evaluations of the controllers in `path`; None if no log is beside them.

    Args:
        settings: those recorded in the checkpoint; they name the seed.

    Raises CheckpointError, naming file and line, for a log that training did not write.
    """
    seed, estimator = settings.get("seed"), settings.get("estimator")
    run = path if (path / LOG_NAME).is_file() else path.parent  # several seeds share the log of their parent
    if not (run / LOG_NAME).is_file() or type(seed) is not int or not isinstance(estimator, str):
        return None
    if run != path and path.name != f"seed-{seed}":
        return None
    evaluations: list[Evaluation] = []
    for number, line in enumerate(read_log(run / LOG_NAME), start=1):
        if line.get("seed") != seed or "val_reward" not in line:
            continue
        epoch, reward = line.get("epoch"), line["val_reward"]
        if type(epoch) is not int or not _is_number(reward):
            raise CheckpointError(
                f"{run / LOG_NAME}: line {number} has no whole number `epoch` and number `val_reward`: train again, "
                "or remove the log"
            )
        evaluations.append(Evaluation(epoch, float(reward)))
    if not evaluations:
        return None
    found = read_json(run / REPORT_NAME, CheckpointError) if (run / REPORT_NAME).is_file() else {}
    table, oracle = (
        float(found[key]) if isinstance(found, dict) and _is_number(found.get(key)) else None
        for key in ("val_table_reward", "val_oracle_reward")
    )
    best = settings.get("best_epoch")
    return TrainingLog(
        name, seed, estimator, tuple(evaluations), best if type(best) is int else evaluations[-1].epoch, table, oracle
    )


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
