"""Finds datasets whose accuracy does not tell settings apart: an unsuitable metric, or a constant value."""

from __future__ import annotations

import numpy as np

from ..metrics import METRICS, full_score_warning
from .reader import Cache


def accuracy_warnings(cache: Cache) -> list[str]:
    """Returns a warning for each dataset whose metric cannot give full scores, and each whose accuracy is constant."""
    command = f"knobctl rescore {cache.path} --metric {{dataset}}=exact_match --out NEW"
    dataset_S = cache.samples["dataset"].to_numpy()
    has_answers = "answers" in cache.samples.columns
    warnings = []
    for dataset in cache.samples["dataset"].unique().sort().to_list():
        rows_S = dataset_S == dataset
        if has_answers and (metric := _metric_of(cache, dataset)) is not None:
            answers = cache.samples["answers"].filter(rows_S).drop_nulls().to_list()
            warning = full_score_warning(dataset, metric, answers, command=command)
            warnings += [] if warning is None else [warning]
        known = cache.accuracy_SX[rows_S]
        known = known[~np.isnan(known)]
        if len(known) and known.min() == known.max():
            warnings.append(
                f"dataset `{dataset}`: accuracy is {known[0]:g} for all its {rows_S.sum()} samples under every setting"
            )
    return warnings


def _metric_of(cache: Cache, dataset: str) -> str | None:
    """Returns the metric that the manifest records for a dataset; None when it records none or an unknown one."""
    metric = (cache.manifest.datasets or {}).get(dataset, {}).get("metric")
    return metric if metric in METRICS else None
