"""Accuracy of answers: the VQA metrics of the literature, and exact match.

Uses the standard library only. Start with `scores.py`; `normalise.py` holds the official text normalisation, and
`full_score.py` checks whether a metric suits a dataset.
"""

from .full_score import FullScores, full_score_warning, full_scores
from .scores import METRICS, Metric, Scorer, get_metric, score

__all__ = [
    "METRICS",
    "FullScores",
    "Metric",
    "Scorer",
    "full_score_warning",
    "full_scores",
    "get_metric",
    "score",
]
