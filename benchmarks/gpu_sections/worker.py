"""The measuring process: runs sections in order and prints every row as a JSON line, which `gpu.py` reads.

It does not handle failures. An error ends the process; `gpu.py` records it and starts another process for the remaining
sections. A CUDA error, after which a process can no longer use the device, therefore costs only one section.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import torch
import transformers
from molmoe import device_name, device_slug
from tables import Row

from .schedule import SECTIONS, Schedule, Section


@dataclass(frozen=True)
class Work:
    """The device, size and remaining time of a section."""

    device: torch.device
    is_small: bool  # small configs and few samples, to check on any machine that everything runs
    time_left_s: Callable[[], float]


def run_sections(device: torch.device, schedule: Schedule, *, is_small: bool) -> None:
    """Reports the device, reads the names of sections from stdin, and runs them.

    Events go to stdout, and everything that sections print to stderr.
    """
    events = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8", buffering=1)

    def emit(event: str, section: Section | None = None, **values: object) -> None:
        print(json.dumps({"event": event, "section": section and section.name, **values}), file=events)

    if device.type == "cpu":
        torch.set_num_threads(1)
    emit("device", slug=device_slug(device))  # fails if there is no such device
    names = json.loads(sys.stdin.readline())
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    for section in (section for section in SECTIONS if section.name in names):
        emit("started", section, about=_about(device, is_small))
        if schedule.left_s(section.name) <= 0:
            emit("skipped", section, reason="its time was over before it started.")
            continue
        module, _, function = section.function.partition(":")
        with contextlib.redirect_stdout(sys.stderr):
            find_rows = getattr(importlib.import_module(f".{module}", __package__), function)
            work = Work(device, is_small, lambda name=section.name: schedule.left_s(name))
            _run(section, find_rows(work), emit, work)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _exit_with_parent() -> None:
    """Exits when stdin ends, which happens only when the parent ends."""
    sys.stdin.read()
    os._exit(1)


def _run(section: Section, rows: Iterator[Row], emit: Callable[..., None], work: Work) -> None:
    start, count = time.monotonic(), 0
    for count, (table, values) in enumerate(rows, 1):
        emit("row", section, table=table, values=_plain(values))
        if work.time_left_s() <= 0:
            emit("stopped", section, reason=f"its time was over after {count} rows.")
            return
    emit("finished", section, seconds=round(time.monotonic() - start, 1))


def _plain(values: Mapping[str, object]) -> dict[str, object]:
    return {name: value if isinstance(value, int | float | None) else str(value) for name, value in values.items()}


def _about(device: torch.device, is_small: bool) -> str:
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    return f"{device_name(device)}, {'small' if is_small else 'full'} size, {versions}, {now}"
