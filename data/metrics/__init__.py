"""What "accuracy" means: the VQA metrics of the field, and exact match."""

from .scores import METRICS, Metric, Scorer, get_metric, score

__all__ = ["METRICS", "Metric", "Scorer", "get_metric", "score"]
