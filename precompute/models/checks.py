"""Results of the checks that decide whether a model is accepted."""

from __future__ import annotations

from dataclasses import dataclass

from ...data.errors import CheckpointError


@dataclass(frozen=True)
class Check:
    """The result of one check of a model on its real weights."""

    name: str
    meaning: str
    passed: bool
    detail: str  # the largest difference, or what failed and in which block
    seconds: float


class ModelRefused(CheckpointError):
    """A model failed a check; `checks` holds the results up to it."""

    def __init__(self, message: str, checks: tuple[Check, ...]) -> None:
        super().__init__(message)
        self.checks = checks
