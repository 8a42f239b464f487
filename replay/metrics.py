"""What training logs, under the names that GRPO trainers use, and where it goes: CSV, JSONL, TensorBoard, W&B."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from ..data.errors import KnobctlError

COLUMNS = (
    "seed",
    "epoch",
    "step",
    "reward",  # mean over draws
    "reward_std",  # mean over groups of the standard deviation within
    "frac_reward_zero_std",  # share of groups whose rewards tie
    "entropy",
    "kl",
    "clip_ratio",
    "grad_norm",  # before clipping
    "lr",
    "val_reward",  # greedy, at evaluations only
    "val_accuracy_term",
    "val_latency_term",
    "val_violation_term",
    "val_saving_term",
    "val_complexity_term",
)
TIE = 1e-6  # a group whose rewards spread less than this ties


class StepLog:
    """Gathers the steps between two lines. Reducing waits until a line is due: it costs more than a small step."""

    def __init__(self) -> None:
        self._rewards: list[Tensor] = []
        self._seen: list[tuple[Tensor, Tensor | None, Tensor | None]] = []
        self.lines: list[dict[str, float]] = []

    def add(
        self, reward_NBG: Tensor, entropy_N: Tensor, kl_N: Tensor | None = None, clip_ratio_N: Tensor | None = None
    ) -> None:
        self._rewards.append(reward_NBG)
        self._seen.append((entropy_N, kl_N, clip_ratio_N))

    def close(self, epoch: int, step: int, lr: float, grad_norm_N: Tensor) -> None:
        """Reduces to one line per seed; `grad_norm_N` is the last step's, before any clipping."""
        # The exact estimator has one value a group, and so no spread.
        spread = [reward.std(dim=2) for reward in self._rewards if reward.shape[2] > 1]
        reward_N = torch.stack([reward.mean(dim=(1, 2)) for reward in self._rewards]).mean(dim=0)
        columns = {"reward": reward_N, "grad_norm": grad_norm_N}
        if spread:
            columns["reward_std"] = torch.stack([value.mean(dim=1) for value in spread]).mean(dim=0)
            ties = [(value < TIE).float().mean(dim=1) for value in spread]
            columns["frac_reward_zero_std"] = torch.stack(ties).mean(dim=0)
        for index, name in enumerate(("entropy", "kl", "clip_ratio")):
            found = [seen[index] for seen in self._seen if seen[index] is not None]
            if found:
                columns[name] = torch.stack([value for value in found if value is not None]).mean(dim=0)
        shared = {"epoch": epoch, "step": step, "lr": lr}
        self.lines = [
            {**shared, **{name: float(value[seed]) for name, value in columns.items()}} for seed in range(len(reward_N))
        ]


class MetricsWriter:
    """Appends lines to `log.csv` and `log.jsonl`, and to TensorBoard and Weights & Biases where asked.

    Resuming drops the lines after the step it resumes from, so that no step is logged twice.
    """

    def __init__(
        self,
        out: Path,
        config: dict[str, Any],
        *,
        resume_step: int = 0,
        tensorboard: bool = False,
        wandb_project: str | None = None,
    ) -> None:
        out.mkdir(parents=True, exist_ok=True)
        kept = _lines_until(out / "log.jsonl", resume_step) if resume_step else []
        self._jsonl = (out / "log.jsonl").open("w", encoding="utf-8")
        self._csv = (out / "log.csv").open("w", encoding="utf-8", newline="")
        self._table = csv.DictWriter(self._csv, COLUMNS, restval="")
        self._table.writeheader()
        self._tied: dict[int, bool] = {}  # by seed: whether every line so far says that all groups tied
        self._board = _tensorboard(out / "tensorboard") if tensorboard else None
        self._run = None if wandb_project is None else _wandb(wandb_project, config, out)
        for line in kept:
            self._append(line)

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._jsonl.close()
        self._csv.close()
        if self._board is not None:
            self._board.close()
        if self._run is not None:
            self._run.finish()

    def write(self, seed: int, line: dict[str, float]) -> None:
        record = {"seed": seed, **line}
        self._append(record)
        values = {name: value for name, value in line.items() if name not in ("step", "epoch")}
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"seed-{seed}/{name}", value, int(line["step"]))
        if self._run is not None:
            self._run.log({f"seed-{seed}/{name}": value for name, value in line.items()}, step=int(line["step"]))

    @property
    def tied_seeds(self) -> list[int]:
        """Seeds whose groups all tied from the first step to the last one logged: rewards taught them nothing."""
        return sorted(seed for seed, tied in self._tied.items() if tied)

    def flush(self) -> None:
        self._jsonl.flush()
        self._csv.flush()

    def _append(self, record: dict[str, float]) -> None:
        self._jsonl.write(json.dumps(record) + "\n")
        self._table.writerow(record)
        if "frac_reward_zero_std" in record:
            seed = int(record["seed"])
            self._tied[seed] = self._tied.get(seed, True) and record["frac_reward_zero_std"] == 1.0


def _lines_until(path: Path, step: int) -> list[dict[str, float]]:
    """Returns the log's whole lines up to `step`; a kill may have cut the last one."""
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
        if not isinstance(record, dict) or record.get("step", step + 1) > step:
            continue
        lines.append({name: value for name, value in record.items() if name in COLUMNS})
    return lines


def _tensorboard(directory: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as cause:
        raise KnobctlError("--tensorboard needs the package `tensorboard`: pip install knobctl[tensorboard]") from cause
    return SummaryWriter(str(directory))


def _wandb(project: str, config: dict[str, Any], out: Path) -> Any:
    try:
        import wandb
    except ImportError as cause:
        raise KnobctlError("--wandb needs the package `wandb`: pip install knobctl[wandb]") from cause
    return wandb.init(project=project, config=config, dir=str(out))
