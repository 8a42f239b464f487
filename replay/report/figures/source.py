"""What the figures of a report are made from, and what all records share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from ....data.cache.reader import Cache
from ...evaluation.report import EvaluationReport
from ...policies.registry import BASELINES
from ..live_runs import LiveRun
from ..training_logs import TrainingLog
from .cells import DataTable


@dataclass(frozen=True)
class ReportSource:
    """A cache, the evaluation of policies on it and, where they exist, training logs and a live run."""

    cache: Cache
    report: EvaluationReport
    training: tuple[TrainingLog, ...] = ()
    live: LiveRun | None = None

    @property
    def drawn(self) -> tuple[str, ...]:
        """The policies that figures show: the subjects, then the baselines. Ablations are in the tables only."""
        subjects = [name for name in self.report.policies if name in self.report.subjects]
        return (*subjects, *(name for name in self.report.policies if name in BASELINES))

    def _samples(self) -> str:
        report = self.report
        if not report.folds:
            return f"the {report.split} split"
        seeds = [len(report.decisions.choosers(name)) for name in report.subjects]
        mean = f", controllers: mean of {seeds[0]} seeds" if seeds and seeds[0] > 1 else ""
        return f"all samples, cross-validated in {report.folds} folds{mean}"

    @property
    def basis(self) -> Basis:
        report = self.report
        return Basis(
            report.n_samples,
            report.n_clusters,
            report.cluster_by == "image_id",
            self._samples(),
            report.confidence,
            report.resamples,
        )


class Record(Protocol):
    """The numbers of a figure."""

    @property
    def caption(self) -> str:
        """What the figure shows, n and the interval method, in sentences."""

    @property
    def table(self) -> DataTable:
        """The numbers as a table."""


class Absent(NamedTuple):
    """Why a figure cannot be made."""

    reason: str


class Basis(NamedTuple):
    """The samples that a figure is about, and how its intervals were made."""

    n_samples: int
    n_clusters: int
    by_image: bool  # whether intervals resample images, else samples
    samples: str  # which ones, in words
    confidence: float
    resamples: int

    @property
    def counted(self) -> str:
        """The number of samples in words."""
        about = f" about {plural(self.n_clusters, 'image')}" if self.by_image else ""
        return f"n = {plural(self.n_samples, 'question')}{about} ({self.samples})"

    @property
    def with_intervals(self) -> str:
        return f"{self.counted}. {self.intervals}."

    @property
    def intervals(self) -> str:
        """The interval method in words."""
        unit = "images" if self.by_image else "samples"
        return f"{100 * self.confidence:g} % intervals: percentile bootstrap over {unit}, {self.resamples:,} resamples"


def label(policy: str) -> str:
    """Returns a policy's name in sentences and legends."""
    return BASELINES[policy].label if policy in BASELINES else policy


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
