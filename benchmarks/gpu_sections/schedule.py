"""The sections, most valuable first, and their time limits. Imports neither torch nor knobctl."""

from __future__ import annotations

import time
from dataclasses import dataclass

MINUTES = 8.0  # total of the seconds below, which scale with the available minutes


@dataclass(frozen=True)
class Section:
    """A subject of the report. `function` names a generator of rows: `module:function` in this package."""

    name: str
    title: str
    function: str
    seconds: float  # share of the total; time left over by earlier sections is added


SECTIONS = (
    Section("tests", "Tests marked `gpu`", "marked_tests:run_marked_tests", 50),
    Section("molmoe", "MolmoE with random weights", "random_molmoe:speed", 130),
    Section("shared", "Shared compared with one-by-one execution", "execution:shared_execution", 120),
    Section("nano", "nano: precompute and training on the device", "nano:precompute_and_train", 90),
    Section("live", "Replay compared with live execution", "execution:replay_against_live", 60),
)


@dataclass(frozen=True)
class Schedule:
    """The end time of each section, in seconds of `time.monotonic`, which is the same for all processes."""

    began: float
    minutes: float = MINUTES
    grace_s: float = 15.0  # between a section's end and killing the process that still runs it

    def end_of(self, name: str) -> float:
        """Returns the time by which this section and all earlier ones must have ended."""
        names = [section.name for section in SECTIONS]
        seconds = sum(section.seconds for section in SECTIONS[: names.index(name) + 1])
        return self.began + seconds * self.minutes / MINUTES

    def left_s(self, name: str) -> float:
        return self.end_of(name) - time.monotonic()
