"""What "accuracy" means: the VQA metrics of the field, and exact match."""

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
