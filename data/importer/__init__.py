"""Imports measurements of other programs: results directories of the `core_exp` profiler, and importance scores.

Start with `outcomes.py` (a results directory as one table), then `imported_cache.py` (that table as a cache). Each file
goes through `result_files.py`, `reading.py`, `stream.py` and `rows.py`; all of them together through
`deduplication.py`, `accuracy.py` and `coverage.py`. Every problem becomes a `Finding` in `report.py`. Files are
untrusted.
"""

from ..importance.scores import import_importance, load_importance, save_importance
from .imported_cache import import_results
from .outcomes import RecordedOutcomes, recorded_outcomes
from .report import Finding, ImportReport

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
