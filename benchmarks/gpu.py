"""All measurements that need a GPU, in 8 minutes: `make gpu`, which uses the system's Python.

    make gpu                                     # on a GPU, full size; results in benchmarks/results/gpu-<device>.md
    make gpu DEVICE=cpu                          # small configs, to check that every section runs; results in build/gpu
    make gpu GPU_OPTIONS='--resume --minutes 4'  # after an interruption: only sections without a complete result

Each row is written to disk as soon as it is measured, so an interrupted run keeps its rows. Sections are ordered by
value, and each ends when its share of the time is used up. If a section fails, its error is recorded, and the next one
starts in a new process. Needs torch, transformers, numpy, safetensors, tokenizers and Pillow, but not pytest or polars.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpu_sections.results import Results
from gpu_sections.schedule import MINUTES, SECTIONS, Schedule

ROOT = Path(__file__).resolve().parent.parent
START_S = 60.0  # a worker that has not named its device by then is considered stuck


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", choices=["full", "small"], help="default: full on a GPU, small on a CPU")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="total time (default: %(default)g)")
    parser.add_argument(
        "--sections", nargs="+", choices=[one.name for one in SECTIONS], help="sections to run (default: all)"
    )
    parser.add_argument("--resume", action="store_true", help="only sections without a complete result")
    parser.add_argument("--out", type=Path, help="folder of the results")
    parser.add_argument("--worker-began", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    is_cpu = options.device.startswith("cpu")
    options.size = options.size or ("small" if is_cpu else "full")
    options.out = options.out or (ROOT / "build" / "gpu" if is_cpu else ROOT / "benchmarks" / "results")
    names = options.sections or [section.name for section in SECTIONS]
    if options.worker_began is None:
        schedule = Schedule(time.monotonic(), options.minutes)
        command = [
            *(sys.executable, __file__, "--device", options.device, "--size", options.size),
            *("--minutes", str(options.minutes), "--worker-began", str(schedule.began)),
        ]
        return Run(command, schedule, options.out, resume=options.resume).run(names)
    import torch
    from gpu_sections.worker import run_sections

    schedule = Schedule(options.worker_began, options.minutes)
    run_sections(torch.device(options.device), schedule, is_small=options.size == "small")
    return 0


class Run:
    """Starts workers until every section has a result or a reason for having none, and writes their reports."""

    def __init__(self, command: Sequence[str], schedule: Schedule, out: Path, *, resume: bool = False) -> None:
        """Args:

        command: the command line of a worker (`worker.run_sections`).
        resume: skip sections that have a complete result in `out`.
        """
        self._command, self._schedule, self._out, self._resume = command, schedule, out, resume
        self._failed = 0
        self.results: Results | None = None  # set once the device's name is known

    def run(self, names: list[str]) -> int:
        while names:
            names = self._run_worker(names)
        if self.results is None:
            return 1
        print(f"results: {self.results.report} ({self._failed} sections failed)", file=sys.stderr)
        return 1 if self._failed else 0

    def _run_worker(self, names: list[str]) -> list[str]:
        """Runs one worker to its end and returns the remaining sections."""
        current: str | None = None
        with (
            tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log,
            subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, bufsize=1
            ) as worker,
        ):
            assert worker.stdin is not None
            assert worker.stdout is not None
            limit = KillTimer(worker)
            try:
                limit.set(START_S)
                for event in map(json.loads, worker.stdout):
                    if event["event"] == "device":
                        names = self._open(event["slug"], names)
                        worker.stdin.write(json.dumps(names) + "\n")
                        continue
                    self._add(event)
                    current = event["section"] if event["event"] in ("started", "row") else None
                    names = [name for name in names if name != event["section"]]
                    limit.set(self._schedule.grace_s + self._schedule.left_s(event["section"]))
                worker.wait()
            finally:
                limit.cancel()
                worker.kill()
            if worker.returncode == 0:
                return names
            log.seek(0)
            error = log.read()
        print(error, end="", file=sys.stderr)
        reason = "the process did not end in time" if limit.has_fired else _last_line(error, worker.returncode)
        if self.results is None:  # no device: no section can run
            return []
        if current is None and names:
            current, *names = names
            self._add({"event": "started", "section": current, "about": "No process could be started"})
        if current is not None:
            self._add({"event": "failed", "section": current, "reason": reason, "log": error[-4000:]})
        return names

    def _open(self, slug: str, names: list[str]) -> list[str]:
        """Opens the device's results and returns the sections that remain to be measured."""
        if self.results is None:
            self.results = Results(self._out, slug)
            if self._resume:
                return [name for name in names if not self.results.is_complete(name)]
        return names

    def _add(self, event: dict[str, Any]) -> None:
        assert self.results is not None, "a worker reports its device first"
        self.results.add(event)
        self._failed += event["event"] == "failed"
        if event["event"] != "row":
            print(f"{event['section']}: {event['event']} {event.get('reason', '')}", file=sys.stderr)


class KillTimer:
    """Kills a process unless its deadline is extended."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process, self.has_fired = process, False
        self._timer: threading.Timer | None = None

    def set(self, seconds: float) -> None:
        self.cancel()
        self._timer = threading.Timer(max(seconds, 0.0), self._fire)
        self._timer.daemon = True
        self._timer.start()

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _fire(self) -> None:
        self.has_fired = True
        self._process.kill()


def _last_line(error: str, code: int) -> str:
    lines = [line for line in error.splitlines() if line.strip()]
    return f"{lines[-1]} (exit {code})" if lines else f"exit {code}"


if __name__ == "__main__":
    sys.exit(main())
