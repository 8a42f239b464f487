"""TensorBoard, Weights & Biases and Trackio as additional destinations of the training log.

`Trackers` says which are wanted. To add one, write its class, give it a field there and an entry in `_PACKAGES`.
"""

from __future__ import annotations

import importlib
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from ...data.errors import CheckpointError, KnobctlError
from ...data.files.atomic import write_atomically
from ...data.files.bounded_json import dump_json, read_json

TENSORBOARD_NAME = "tensorboard"
WANDB_NAME = "wandb_run.json"  # id of the Weights & Biases run, for --resume
TRACKIO_NAME = "trackio_run.json"  # name of the Trackio run, for --resume
# By option: module, attribute, and the package that provides them.
_PACKAGES = {
    "--tensorboard": ("torch.utils.tensorboard", "SummaryWriter", "tensorboard"),
    "--wandb-project": ("wandb", "init", "wandb"),
    "--trackio-project": ("trackio", "init", "trackio"),
}

Line = dict[str, float]


class Tracker(Protocol):
    """One destination of log lines, open while its context lasts."""

    def write(self, seed: int, line: Line) -> None:
        """Sends one line, which contains `step` and `epoch`."""

    def flush(self) -> None:
        """Returns once all lines survive a kill, if the destination supports that."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@dataclass(frozen=True)
class Trackers:
    """The trackers that a training run logs to."""

    tensorboard: bool = False
    wandb_project: str | None = None
    trackio_project: str | None = None

    def require_packages(self) -> None:
        """Raises KnobctlError for a wanted tracker that is not installed."""
        for option, (module, name, package) in _PACKAGES.items():
            if getattr(self, option.strip("-").replace("-", "_")) in (None, False):
                continue
            try:
                getattr(importlib.import_module(module), name)
            except (ImportError, AttributeError) as cause:  # a folder named `wandb` is imported as an empty package
                raise KnobctlError(
                    f"{option} needs the package `{package}` ({cause}): pip install 'knobctl[logging]'"
                ) from cause

    def open(
        self, stack: ExitStack, out: Path, config: dict[str, Any], resume_step: int, earlier: Sequence[Line]
    ) -> list[Tracker]:
        """Opens the trackers in `stack` and returns them.

        Args:
            out: the output directory of training.
            config: the settings of training.
            resume_step: the step that the run resumes from; 0 for a new run, which removes an earlier one's events.
            earlier: the lines of the log up to that step.
        """
        opened: list[Tracker] = []  # services first: if one fails, the files of an earlier run are untouched
        if self.wandb_project is not None:
            opened.append(stack.enter_context(WandbRun(out, self.wandb_project, config, resume_step, earlier)))
        if self.trackio_project is not None:
            opened.append(stack.enter_context(TrackioRun(out, self.trackio_project, config, resume_step, earlier)))
        if not resume_step:
            remove_events(out)
        if self.tensorboard:
            opened.append(stack.enter_context(TensorBoardLog(out, resume_step, earlier)))
        return opened


def values_of(line: Line) -> Line:
    """Returns the measurements of a line, without seed, step and epoch."""
    return {name: value for name, value in line.items() if name not in ("seed", "step", "epoch")}


class TensorBoardLog:
    """Event files in `out/tensorboard`. A resumed run hides what was logged after the step that it resumes from."""

    def __init__(self, out: Path, resume_step: int, earlier: Sequence[Line]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        has_events = any((out / TENSORBOARD_NAME).glob("events.out.tfevents.*"))
        self._writer = SummaryWriter(str(out / TENSORBOARD_NAME), purge_step=resume_step + 1 if resume_step else None)
        if not has_events:  # the run started without TensorBoard
            for line in earlier:
                self.write(int(line["seed"]), line)

    def write(self, seed: int, line: Line) -> None:
        for name, value in values_of(line).items():
            self._writer.add_scalar(f"seed-{seed}/{name}", value, int(line["step"]))

    def flush(self) -> None:
        self._writer.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()


def remove_events(out: Path) -> None:
    """Removes the event files of an earlier run, which TensorBoard would show together with the new ones."""
    for path in (out / TENSORBOARD_NAME).glob("events.out.tfevents.*"):
        path.unlink()


class WandbRun:
    """A run of Weights & Biases. A resumed training run continues it; its id is stored in `out`."""

    def __init__(
        self, out: Path, project: str, config: dict[str, Any], resume_step: int, earlier: Sequence[Line]
    ) -> None:
        import wandb

        self._project, self._error = project, wandb.Error
        run_id = _recorded_run(out / WANDB_NAME, project) if resume_step else None
        with self._errors():
            self._run = wandb.init(
                project=project, config=config, dir=str(out), id=run_id, resume=None if run_id is None else "allow"
            )
        write_atomically(out / WANDB_NAME, dump_json({"project": project, "id": self._run.id}))
        for line in earlier:  # `write` skips what the service already has
            self.write(int(line["seed"]), line)

    def write(self, seed: int, line: Line) -> None:
        step = int(line["step"])
        with self._errors():
            if step >= self._run.step:  # a killed run may have logged beyond its saved state
                self._run.log({f"seed-{seed}/{name}": value for name, value in values_of(line).items()}, step=step)

    def flush(self) -> None:
        """Does nothing: the lines are held by the service's own process."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._errors():
            self._run.finish(exit_code=0 if error is None else 1)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turns an error of the service into a KnobctlError."""
        try:
            yield
        except (self._error, ConnectionError, TimeoutError) as cause:
            reason = " ".join(str(cause).split())[:300]
            raise KnobctlError(
                f"--wandb-project {self._project}: Weights & Biases reports: {reason} "
                "Log in with `wandb login`, log offline with WANDB_MODE=offline, or omit the option"
            ) from cause


class TrackioRun:
    """A run of Trackio, whose data is in local files. A resumed training run writes it anew under the same name."""

    def __init__(
        self, out: Path, project: str, config: dict[str, Any], resume_step: int, earlier: Sequence[Line]
    ) -> None:
        import trackio

        self._project, self._finish = project, trackio.finish
        name = _recorded_run(out / TRACKIO_NAME, project) if resume_step else None
        with self._errors(), redirect_stdout(sys.stderr):  # stdout holds the result of the command
            if name is not None:  # a killed run may have logged beyond its saved state
                self._delete(name)
            self._run = trackio.init(
                project=project, name=name, config=config, embed=False, auto_log_cpu=False, auto_log_gpu=False
            )
        write_atomically(out / TRACKIO_NAME, dump_json({"project": project, "id": self._run.name}))
        for line in earlier:
            self.write(int(line["seed"]), line)

    def _delete(self, name: str) -> None:
        from trackio import Api

        for run in Api().runs(self._project):
            if run.name == name:
                run.delete()

    def write(self, seed: int, line: Line) -> None:
        with self._errors():
            self._run.log(
                {f"seed-{seed}/{name}": value for name, value in values_of(line).items()}, step=int(line["step"])
            )

    def flush(self) -> None:
        """Does nothing: a resumed run writes all lines again."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._errors(), redirect_stdout(sys.stderr):
            self._finish()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turns an error of Trackio or of its database into a KnobctlError."""
        try:
            yield
        except (ValueError, sqlite3.Error) as cause:
            raise KnobctlError(
                f"--trackio-project {self._project}: Trackio reports: {' '.join(str(cause).split())[:300]}. Choose "
                "another project, move its files with TRACKIO_DIR, or omit the option"
            ) from cause


def _recorded_run(path: Path, project: str) -> str | None:
    """Returns the id of the run of `project` recorded in `path`, or None."""
    if not path.is_file():
        return None
    record = read_json(path, error=CheckpointError, max_bytes=4096)
    if not isinstance(record, dict) or record.get("project") != project or not isinstance(record.get("id"), str):
        return None
    return str(record["id"])
