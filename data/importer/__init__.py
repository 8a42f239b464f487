"""Reads what other programs measured: results directories of the `core_exp` profiler, and importance scores."""

from ..importance.scores import import_importance, load_importance, save_importance
from .recorded import RecordedOutcomes, recorded_outcomes
from .report import Finding, ImportReport
from .to_cache import import_results

__all__ = [
    "Finding",
    "ImportReport",
    "RecordedOutcomes",
    "import_importance",
    "import_results",
    "load_importance",
    "recorded_outcomes",
    "save_importance",
]
