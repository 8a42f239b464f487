"""Which sections there are, most valuable first, and how long each may take. Imports neither torch nor knobctl."""

from __future__ import annotations

import time
from dataclasses import dataclass

MINUTES = 8.0  # that the seconds below are meant for; fewer minutes scale them down


@dataclass(frozen=True)
class Section:
    """A subject of the report. `function` names a generator of rows: `module:function` in this package."""

    name: str
    title: str
    function: str
    seconds: float  # of the time in all; what earlier sections left over comes on top


SECTIONS = (
    Section("tests", "Tests marked `gpu`", "marked_tests:run_marked_tests", 50),
    Section("molmoe", "MolmoE with random weights", "random_molmoe:speed", 130),
    Section("shared", "Shared against one-by-one execution", "execution:shared_execution", 120),
    Section("nano", "nano: precompute and training on the device", "nano:precompute_and_train", 90),
    Section("live", "Replay against live execution", "execution:replay_against_live", 60),
)


@dataclass(frozen=True)
class Schedule:
    """When each section must have ended, in seconds of `time.monotonic`, which all processes of a machine share."""

    began: float
    minutes: float = MINUTES
    grace_s: float = 15.0  # after a section's end, before the process that still runs it is killed

    def end_of(self, name: str) -> float:
        """The sections up to and including this one may take so long together."""
        names = [section.name for section in SECTIONS]
        seconds = sum(section.seconds for section in SECTIONS[: names.index(name) + 1])
        return self.began + seconds * self.minutes / MINUTES

    def left_s(self, name: str) -> float:
        return self.end_of(name) - time.monotonic()
