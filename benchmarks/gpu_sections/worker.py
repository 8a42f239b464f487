"""The process that measures: runs sections in order and prints every row as a JSON line. `gpu.py` reads them.

It handles no failure itself: what goes wrong ends it, `gpu.py` records the error and starts another for the sections
that are left. So a CUDA error, after which a process can use the device no more, costs one section.
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
    """What a section is told."""

    device: torch.device
    is_small: bool  # the small configs and few samples: proves that everything runs, on any machine
    time_left_s: Callable[[], float]


def run_sections(device: torch.device, schedule: Schedule, *, is_small: bool) -> None:
    """Names the device, reads the names of sections from stdin, and runs these.

    Whatever they print goes to stderr: stdout carries the events.
    """
    events = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8", buffering=1)

    def emit(event: str, section: Section | None = None, **values: object) -> None:
        print(json.dumps({"event": event, "section": section and section.name, **values}), file=events)

    if device.type == "cpu":
        torch.set_num_threads(1)
    emit("device", slug=device_slug(device))  # fails here where there is no such device
    names = json.loads(sys.stdin.readline())
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    for section in (section for section in SECTIONS if section.name in names):
        emit("started", section, about=_about(device, is_small))
        if schedule.left_s(section.name) <= 0:
            emit("skipped", section, reason="the time was out before it began.")
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
    """Waits for the end of stdin, which only the parent's end brings."""
    sys.stdin.read()
    os._exit(1)


def _run(section: Section, rows: Iterator[Row], emit: Callable[..., None], work: Work) -> None:
    start, count = time.monotonic(), 0
    for count, (table, values) in enumerate(rows, 1):
        emit("row", section, table=table, values=_plain(values))
        if work.time_left_s() <= 0:
            emit("stopped", section, reason=f"the time was out after {count} rows.")
            return
    emit("finished", section, seconds=round(time.monotonic() - start, 1))


def _plain(values: Mapping[str, object]) -> dict[str, object]:
    return {name: value if isinstance(value, int | float | None) else str(value) for name, value in values.items()}


def _about(device: torch.device, is_small: bool) -> str:
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    return f"{device_name(device)}, {'small' if is_small else 'full'} size, {versions}, {now}"
