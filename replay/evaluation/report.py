"""The result of an evaluation as plain data: figures with intervals, paired differences, warnings as sentences."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..tables import ReplayTables
from .bootstrap import Estimate

OVERALL = "overall"  # the group of all samples
BETTER, WORSE, NOT_SHOWN = "better", "worse", "no difference shown"


@dataclass(frozen=True)
class Group:
    """Figures of one policy over some samples: `metrics` over all budgets, `per_budget` for each budget."""

    n_samples: int
    n_clusters: int
    metrics: dict[str, Estimate]
    per_budget: tuple[dict[str, Estimate], ...]

    def to_dict(self, budgets_ms: Sequence[float]) -> dict[str, Any]:
        return {
            "n_samples": self.n_samples,
            "n_clusters": self.n_clusters,
            "all_budgets": {name: estimate.to_dict() for name, estimate in self.metrics.items()},
            "per_budget": [
                {"budget_ms": budget_ms, **{name: estimate.to_dict() for name, estimate in metrics.items()}}
                for budget_ms, metrics in zip(budgets_ms, self.per_budget, strict=True)
            ],
        }


@dataclass(frozen=True)
class PolicyReport:
    """One policy: its figures overall and per dataset, and its choices.

    `settings` maps each chosen setting to its share of requests, most frequent first; `knobs` and `knobs_per_budget`
    hold the shares of each knob's values, over all budgets and for each budget.
    """

    name: str
    description: str
    overall: Group
    datasets: dict[str, Group]
    settings: dict[str, float]
    knobs: dict[str, dict[str, float]]
    knobs_per_budget: tuple[dict[str, dict[str, float]], ...]


@dataclass(frozen=True)
class Comparison:
    """A paired difference, `policy` minus `versus`, on the same requests and resamples, over all budgets."""

    policy: str
    versus: str
    group: str  # OVERALL, or a dataset's name
    differences: dict[str, Estimate]
    reward_per_budget: tuple[Estimate, ...]
    adjusted_p_value: float | None  # of the difference in mean reward, by Holm's method; None without an interval
    significance: float

    @property
    def verdict(self) -> str:
        """The result by mean reward: better or worse only if the adjusted p-value is below the significance level."""
        if self.adjusted_p_value is None or self.adjusted_p_value >= self.significance:
            return NOT_SHOWN
        difference = self.differences["reward"].value
        assert difference is not None
        return BETTER if difference > 0 else WORSE

    def to_dict(self, budgets_ms: Sequence[float]) -> dict[str, Any]:
        return {
            "policy": self.policy,
            "versus": self.versus,
            "group": self.group,
            "verdict": self.verdict,
            "adjusted_p_value": self.adjusted_p_value,
            "differences": {name: estimate.to_dict() for name, estimate in self.differences.items()},
            "reward_per_budget": [
                {"budget_ms": budget_ms, **estimate.to_dict()}
                for budget_ms, estimate in zip(budgets_ms, self.reward_per_budget, strict=True)
            ],
        }


@dataclass(frozen=True)
class Decisions:
    """Every policy's choices: setting indices [N, M] by policy, for these samples and budget indices.

    `means` names the policies that each mean, such as that of several seeds, is taken over; a mean chooses nothing.
    """

    tables: ReplayTables
    sample_N: NDArray[np.int64]
    budget_M: tuple[int, ...]
    chosen: dict[str, NDArray[np.int64]]
    means: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def choosers(self, policy: str) -> tuple[str, ...]:
        """Returns the policies whose choices the figures of `policy` are a mean over: itself, unless it is a mean."""
        return self.means.get(policy, (policy,))


@dataclass
class EvaluationReport:
    """The report of `validate`, `compare` and `cross-validate`."""

    split: str
    n_samples: int
    n_clusters: int
    cluster_by: str  # "image_id" or "sample_id"
    budgets_ms: tuple[float, ...]
    unmet_budgets_ms: tuple[float, ...]
    reward_weights: dict[str, float]
    resamples: int
    confidence: float
    seed: int
    latency_percentiles_over: str  # "runs" or "latency_ms"
    policies: dict[str, PolicyReport]
    comparisons: list[Comparison]
    decisions: Decisions = field(repr=False)  # not part of `to_dict`
    subjects: tuple[str, ...] = ()  # the policies that the report is about; the others are references
    warnings: list[str] = field(default_factory=list)
    cache: dict[str, Any] = field(default_factory=dict)
    controllers: dict[str, Any] = field(default_factory=dict)
    live: dict[str, Any] | None = None
    choices_path: str | None = None
    folds: int | None = None  # of a cross-validation; None if a single split was held out

    def to_dict(self) -> dict[str, Any]:
        """Returns the whole report for JSON: undefined figures are None, never NaN."""
        return {
            "cache": self.cache,
            "controllers": self.controllers,
            "split": self.split,
            "folds": self.folds,
            "n_samples": self.n_samples,
            "n_clusters": self.n_clusters,
            "cluster_by": self.cluster_by,
            "budgets_ms": list(self.budgets_ms),
            "unmet_budgets_ms": list(self.unmet_budgets_ms),
            "reward_weights": self.reward_weights,
            "bootstrap": {"resamples": self.resamples, "confidence": self.confidence, "seed": self.seed},
            "latency_percentiles_over": self.latency_percentiles_over,
            "subjects": list(self.subjects),
            "policies": {name: self._policy(policy) for name, policy in self.policies.items()},
            "comparisons": [comparison.to_dict(self.budgets_ms) for comparison in self.comparisons],
            "live": self.live,
            "choices": self.choices_path,
            "warnings": self.warnings,
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    def compared(self, policy: str, versus: str, group: str = OVERALL) -> Comparison | None:
        """Returns the paired difference of two policies; None if one of them was left out."""
        for comparison in self.comparisons:
            if (comparison.policy, comparison.versus, comparison.group) == (policy, versus, group):
                return comparison
        return None

    def _policy(self, policy: PolicyReport) -> dict[str, Any]:
        return {
            "description": policy.description,
            "overall": policy.overall.to_dict(self.budgets_ms),
            "datasets": {name: group.to_dict(self.budgets_ms) for name, group in policy.datasets.items()},
            "settings": policy.settings,
            "knobs": policy.knobs,
            "knobs_per_budget": [
                {"budget_ms": budget_ms, **knobs}
                for budget_ms, knobs in zip(self.budgets_ms, policy.knobs_per_budget, strict=True)
            ],
        }
