"""The training log, with the column names that GRPO trainers use: CSV, JSON Lines, and optional trackers."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from ...data.files.atomic import write_atomically
from ..reward import TERMS
from .trackers import Tracker, Trackers

COLUMNS = (
    "seed",
    "epoch",
    "step",
    "reward",  # mean over draws
    "reward_std",  # standard deviation within a group, mean over groups
    "frac_reward_zero_std",  # share of groups whose rewards are tied
    "entropy",
    "kl",
    "clip_ratio",
    "grad_norm",  # before clipping
    "lr",
    "val_reward",  # of greedy choices, at evaluations only
    *(f"val_{term}_term" for term in TERMS),
)
LOG_NAME = "log.jsonl"
TIE = 1e-6  # rewards that differ by less than this are tied


class StepLog:
    """Collects the steps between two lines of the log, and reduces them together: that costs more than a step."""

    def __init__(self) -> None:
        self._rewards: list[Tensor] = []
        self._seen: list[Mapping[str, Tensor]] = []
        self.lines: list[dict[str, float]] = []

    def add(self, reward_NBG: Tensor, seen: Mapping[str, Tensor]) -> None:
        """Adds the rewards of a step's draws (exact estimator: expected rewards, [N, B, 1]), and columns [N]."""
        self._rewards.append(reward_NBG)
        self._seen.append(seen)

    def close(self, epoch: int, step: int, lr: float, grad_norm_N: Tensor) -> None:
        """Reduces the steps to one line per seed; `grad_norm_N` is that of the last step, before clipping."""
        # The exact estimator has one value per group, and so no spread.
        spread = [reward.std(dim=2) for reward in self._rewards if reward.shape[2] > 1]
        reward_N = torch.stack([reward.mean(dim=(1, 2)) for reward in self._rewards]).mean(dim=0)
        columns = {"reward": reward_N, "grad_norm": grad_norm_N}
        if spread:
            columns["reward_std"] = torch.stack([value.mean(dim=1) for value in spread]).mean(dim=0)
            ties = [(value < TIE).float().mean(dim=1) for value in spread]
            columns["frac_reward_zero_std"] = torch.stack(ties).mean(dim=0)
        columns |= {name: torch.stack([seen[name] for seen in self._seen]).mean(dim=0) for name in self._seen[0]}
        shared = {"epoch": epoch, "step": step, "lr": lr}
        self.lines = [
            {**shared, **{name: float(value[seed]) for name, value in columns.items()}} for seed in range(len(reward_N))
        ]


class MetricsWriter:
    """Appends lines to `log.csv` and `log.jsonl` and sends them to trackers.

    A resumed run first drops the lines after the step that it resumes from, so that no step is logged twice.
    """

    def __init__(
        self,
        out: Path,
        config: dict[str, Any],
        *,
        resume_step: int = 0,
        trackers: Trackers | None = None,
    ) -> None:
        log = out / LOG_NAME
        kept = read_log(log, resume_step) if resume_step else []
        self._trackers: list[Tracker] = []
        self._tied: dict[int, bool] = {}  # by seed: whether all groups were tied in every line so far
        for line in kept:
            self._note_ties(line)
        with ExitStack() as stack:
            self._trackers = (trackers or Trackers()).open(stack, out, config, resume_step, kept)
            write_atomically(log, "".join(json.dumps(line) + "\n" for line in kept).encode())
            self._jsonl = stack.enter_context(log.open("a", encoding="utf-8"))
            self._csv = stack.enter_context((out / "log.csv").open("w", encoding="utf-8", newline=""))
            self._table = csv.DictWriter(self._csv, COLUMNS, restval="")
            self._table.writeheader()
            self._table.writerows(kept)
            self._open = stack.pop_all()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, trace)

    def write(self, seed: int, line: dict[str, float]) -> None:
        record = {"seed": seed, **line}
        self._jsonl.write(json.dumps(record) + "\n")
        self._table.writerow(record)
        self._note_ties(record)
        for tracker in self._trackers:
            tracker.write(seed, line)

    def flush(self) -> None:
        """Writes all lines out, so that they survive a kill; call it before saving the state that relies on them."""
        self._jsonl.flush()
        self._csv.flush()
        for tracker in self._trackers:
            tracker.flush()

    @property
    def tied_seeds(self) -> list[int]:
        """Seeds whose groups were all tied in every logged step, so that nothing was learned from rewards."""
        return sorted(seed for seed, tied in self._tied.items() if tied)

    def _note_ties(self, record: dict[str, float]) -> None:
        if "frac_reward_zero_std" in record:
            seed = int(record["seed"])
            self._tied[seed] = self._tied.get(seed, True) and record["frac_reward_zero_std"] == 1.0


def read_log(path: Path, last_step: float = math.inf) -> list[dict[str, float]]:
    """Returns the complete lines of the log up to `last_step`; a kill may have truncated the last line."""
    if not path.is_file():
        return []
    lines = []
    for text in io.StringIO(path.read_text(encoding="utf-8", errors="replace")):
        if not text.endswith("\n"):
            break
        try:
            record = json.loads(text)
        except json.JSONDecodeError:
            break
        if not isinstance(record, dict) or record.get("step", math.inf) > last_step:
            continue
        lines.append({name: value for name, value in record.items() if name in COLUMNS})
    return lines
