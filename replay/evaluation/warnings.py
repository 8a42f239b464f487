"""The warnings of a report: what limits the validity of its figures, one sentence each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..reward import RewardWeights
from ..tables import ReplayTables
from .load_controllers import LoadedControllers
from .report import OVERALL
from .request_stats import RequestSet

if TYPE_CHECKING:
    from ...data.cache.reader import Cache

FEW_CLUSTERS = 20


def cluster_warnings(cache: Cache) -> list[str]:
    """Warns if intervals cannot cluster by image for all samples."""
    frame = cache.samples
    if "image_id" not in frame.columns or frame["image_id"].null_count() == len(frame):
        return ["the cache has no image_id: intervals cluster by sample, and are too narrow where samples share images"]
    unknown = frame["image_id"].null_count()
    return [f"{unknown} samples have no image_id: each counts as an image of its own"] if unknown else []


def hole_warnings(tables: ReplayTables, split: str) -> list[str]:
    """Counts the missing outcomes, and the samples that are left out because they have none."""
    rows = tables.indices(split)
    available_NX = tables.available_SX[rows]
    without = int((~available_NX.any(axis=1)).sum())
    holed = int((~available_NX.all(axis=1)).sum()) - without
    found = []
    if without:
        found.append(f"{without} of {len(rows)} samples of split `{split}` have no outcome at all and are left out")
    if holed:
        share = float((~available_NX[available_NX.any(axis=1)]).mean())
        found.append(
            f"{holed} samples of split `{split}` lack some outcomes ({share:.1%} of settings): no policy may choose "
            "these, so figures cover recorded outcomes only"
        )
    return found


def held_out_warnings(tables: ReplayTables, split: str) -> list[str]:
    """Warns if policies were fitted or selected on the split, or on images of its samples."""
    if split != "test":
        return [f"figures on `{split}` are not held out: policies were fitted or selected on it"]
    used = np.concatenate([tables.indices("train"), tables.indices("val")])
    shared = np.isin(tables.cluster_S[tables.indices(split)], tables.cluster_S[used])
    if not shared.any():
        return []
    return [f"{int(shared.sum())} samples of split `{split}` show images that `train` or `val` has too: not held out"]


def token_warnings(tables: ReplayTables, split: str) -> list[str]:
    """Warns if latency tokens are missing: policies that read them cannot choose the settings that follow."""
    present_STPM = tables.token_present_STPM
    if present_STPM is None:
        return []
    missing = float(1.0 - present_STPM[tables.indices(split)].mean())
    if not missing:
        return []
    return [
        f"{missing:.1%} of the latency tokens of split `{split}` are missing: policies that read them (including the "
        "controllers) choose among fewer settings than the others"
    ]


def unmet_budget_warnings(requests: RequestSet) -> list[str]:
    """Names the budgets that no setting of any sample meets."""
    unmet_ms = requests.unmet_budgets_ms
    if not len(unmet_ms):
        return []
    named = ", ".join(f"{budget:g}" for budget in unmet_ms)
    return [f"no setting of any sample meets these budgets: {named} ms. Every policy is over budget there"]


def percentile_warnings(requests: RequestSet) -> list[str]:
    """Warns if latency percentiles do not pool individual runs."""
    if requests.latency_runs_ms_NXR is not None:
        return []
    return ["the cache keeps no latency_runs_ms: latency percentiles pool one latency_ms per sample, not runs"]


def few_warnings(clusters: Mapping[str, int], cluster_by: str) -> list[str]:
    """Names the groups, {name: number of images}, with too few for reliable intervals; only "overall" if it is one.

    `cluster_by` is "image_id" or "sample_id".
    """
    unit = "image" if cluster_by == "image_id" else "sample"
    few = {group: count for group, count in clusters.items() if count < FEW_CLUSTERS}
    if OVERALL in few:
        few = {OVERALL: few[OVERALL]}
    found = []
    for group, count in few.items():
        of = "" if group == OVERALL else f" of {group}"
        if count < 2:
            found.append(f"a single {unit}{of}: no interval can be given")
        else:
            found.append(f"only {count} {unit}s{of}: bootstrap intervals from so few are too narrow")
    return found


def weights_warnings(loaded: Sequence[LoadedControllers], weights: RewardWeights) -> list[str]:
    """Names the controllers that were trained with other reward weights than the report uses."""
    return [
        f"{one.policy.name} was trained with other reward weights ({one.weights.to_dict()}) than this report's"
        for one in loaded
        if one.weights is not None and one.weights != weights
    ]


def origin_warnings(loaded: Sequence[LoadedControllers], cache: Cache) -> list[str]:
    """Names the controllers that were trained on another cache, whose splits may differ."""
    return [
        f"{one.path} was trained on another cache (fingerprint {one.trained_on[:12]}): whether that included "
        "samples of this cache's held-out split cannot be checked"
        for one in loaded
        if one.trained_on is not None and one.trained_on != cache.fingerprint
    ]
