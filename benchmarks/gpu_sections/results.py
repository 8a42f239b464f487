"""The results of a run: one JSON line per event, and a Markdown report rendered from them.

An attempt at a section begins with its `started` event. The report shows the latest attempt that has rows, so a later
run that is interrupted does not hide earlier measurements.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tables import Row, markdown

from .schedule import SECTIONS


@dataclass
class Attempt:
    """One attempt at a section: its `started` event, its rows, and its last event (None: it was interrupted)."""

    header: Mapping[str, Any]
    rows: list[Row] = field(default_factory=list)
    end: Mapping[str, Any] | None = None

    @property
    def is_complete(self) -> bool:
        return self.end is not None and self.end["event"] == "finished"

    def state(self) -> str:
        if self.end is None:
            return "Interrupted."
        if self.end["event"] == "finished":
            return f"Measured in {self.end['seconds']:.1f} s."
        return f"{self.end['event'].capitalize()}: {self.end['reason']}"


class Results:
    """The two files `gpu-<device>.jsonl` and `.md` in a folder."""

    def __init__(self, folder: Path, device_slug: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.lines, self.report = folder / f"gpu-{device_slug}.jsonl", folder / f"gpu-{device_slug}.md"
        self.attempts: dict[str, list[Attempt]] = {section.name: [] for section in SECTIONS}
        if self.lines.exists():
            whole, newline, cut_off = self.lines.read_bytes().rpartition(b"\n")
            if cut_off:  # truncated by a kill
                self.lines.write_bytes(whole + newline)
            for line in whole.splitlines():
                self._take(json.loads(line))

    def add(self, event: Mapping[str, Any]) -> None:
        """Writes an event to disk immediately and renders the report again."""
        text = json.dumps(event)
        with self.lines.open("a", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._take(json.loads(text))
        self._write_report()

    def latest(self, name: str) -> Attempt | None:
        """Returns the latest attempt with rows, or the latest one if none has rows."""
        attempts = self.attempts[name]
        return next((one for one in reversed(attempts) if one.rows), attempts[-1] if attempts else None)

    def is_complete(self, name: str) -> bool:
        return any(attempt.is_complete for attempt in self.attempts[name])

    def _take(self, event: Mapping[str, Any]) -> None:
        attempts = self.attempts.get(event["section"])
        if attempts is None:  # a section of an earlier version
            return
        if event["event"] == "started":
            attempts.append(Attempt(event))
        elif event["event"] == "row":
            attempts[-1].rows.append((event["table"], event["values"]))
        else:
            attempts[-1].end = event

    def _write_report(self) -> None:
        parts = [
            "# GPU figures\n",
            "Written by `make gpu` (benchmarks/gpu.py) during the run; values are medians unless stated otherwise.\n",
        ]
        for section in SECTIONS:
            attempt = self.latest(section.name)
            parts.append(f"## {section.title}\n")
            if attempt is None:
                parts.append("Not measured yet.\n")
                continue
            parts += [f"{attempt.header['about']}. {attempt.state()}\n", markdown(attempt.rows)]
        scratch = self.report.with_suffix(".md.tmp")
        scratch.write_text("\n".join(parts), encoding="utf-8")
        scratch.replace(self.report)
