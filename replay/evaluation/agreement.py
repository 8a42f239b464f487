"""Agreement of a live run with replay: setting, answer, accuracy, latency; every difference with its cause."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...data.protocols import Policy
from ..tables import ReplayTables
from .live import LiveRun, request_of

if TYPE_CHECKING:
    from ...data.cache.reader import Cache

ACCURACY_TOLERANCE = 1e-6  # the cache stores float32


def agreement(
    runs: Sequence[LiveRun],
    policies: Mapping[str, Policy],
    replayed: Mapping[tuple[str, int, float], int],
    cache: Cache,
    tables: ReplayTables,
) -> dict[str, Any]:
    """Returns the counts of agreements, and a list of all disagreements.

    `replayed` maps (policy, sample, budget as float32) to the setting that replay chose. Requests without a counterpart
    in replay (a budget outside the grid, a row missing from the cache) are counted separately and not compared.
    """
    counts: Counter[str] = Counter(requests=len(runs))
    disagreements: list[dict[str, Any]] = []
    relative_error: dict[tuple[int, int], float] = {}
    for run in runs:
        found = {
            "policy": run.policy,
            "sample_id": tables.sample_ids[run.sample],
            "budget_ms": run.budget_ms,
            "setting": str(run.setting),
        }
        expected = replayed.get((run.policy, run.sample, float(np.float32(run.budget_ms))))
        if expected is None:
            counts["outside_replay"] += 1
        else:
            counts["settings_compared"] += 1
            counts["same_setting"] += expected == run.setting_index
            if expected != run.setting_index:
                cause = _setting_cause(run, policies[run.policy], cache, tables)
                replay = str(tables.space.settings[expected])
                disagreements.append({**found, "kind": "setting", "replay": replay, "live": str(run.setting), **cause})
        _compare_inputs(run, cache, tables, counts)
        _compare_outcome(run, cache, counts, found, disagreements, relative_error)
    causes = Counter(f"{item['kind']}: {item['cause']}" for item in disagreements)
    error = np.array(list(relative_error.values()))
    return {
        **{name: int(counts[name]) for name in _COUNTS},
        "disagreements": disagreements,
        "causes": dict(causes.most_common()),
        "latency_error": None
        if not len(error)
        else {
            "outcomes": len(error),
            "mean_signed": float(error.mean()),
            "median_absolute": float(np.median(np.abs(error))),
            "p95_absolute": float(np.quantile(np.abs(error), 0.95)),
        },
    }


_COUNTS = (
    "requests",
    "outside_replay",
    "features_compared",
    "same_feature",
    "tokens_compared",
    "same_token",
    "settings_compared",
    "same_setting",
    "answers_compared",
    "same_answer",
    "accuracies_compared",
    "same_accuracy",
    "not_cached",
)


def _compare_inputs(run: LiveRun, cache: Cache, tables: ReplayTables, counts: Counter[str]) -> None:
    """Counts whether the policy's inputs are bit-equal to those in the cache."""
    counts["features_compared"] += 1
    counts["same_feature"] += np.array_equal(tables.language_feature_SD[run.sample], run.language_feature_D)
    token_D = _cached_token(run, cache, tables)
    if token_D is not None and run.token_D is not None:
        counts["tokens_compared"] += 1
        counts["same_token"] += np.array_equal(token_D, run.token_D)


def _cached_token(run: LiveRun, cache: Cache, tables: ReplayTables) -> NDArray[np.float16] | None:
    """Returns the cache's token at the run's tier, position and budget; None if it has none."""
    space, tokens = tables.space, cache.tokens
    budget = np.flatnonzero(tables.budgets_ms_M == np.float32(run.budget_ms))
    if tokens is None or not len(budget):
        return None
    tier = space.tiers.index(run.setting.tier)
    position = space.insertion_positions.index(run.setting.insertion_position)
    place = (run.sample, tier, position, int(budget[0]))
    return np.asarray(tokens.token_STPMD[place]) if tokens.present_STPM[place] else None


def _compare_outcome(
    run: LiveRun,
    cache: Cache,
    counts: Counter[str],
    found: dict[str, Any],
    disagreements: list[dict[str, Any]],
    relative_error: dict[tuple[int, int], float],
) -> None:
    """Compares the outcome with the cache's outcome of the same setting, whether or not replay chose it."""
    cell = (run.sample, run.setting_index)
    if not cache.present_SX[cell]:
        counts["not_cached"] += 1
        return
    answer, accuracy = cache.outcome_value("answer", *cell), float(cache.accuracy_SX[cell])
    comparable = answer is not None and run.outcome.answer is not None
    same_answer = comparable and answer == run.outcome.answer
    counts["answers_compared"] += comparable
    counts["same_answer"] += same_answer
    if comparable and not same_answer:
        cause = "the model generated another answer under the same setting"
        disagreements.append({**found, "kind": "answer", "replay": answer, "live": run.outcome.answer, "cause": cause})
    same_accuracy = abs(accuracy - run.outcome.accuracy) <= ACCURACY_TOLERANCE
    counts["accuracies_compared"] += 1
    counts["same_accuracy"] += same_accuracy
    if not same_accuracy:
        cause = (
            "the same answer scored differently: other metric or reference answers"
            if same_answer
            else "the answer differs"
            if comparable
            else "one side keeps no answer to compare"
        )
        disagreements.append(
            {**found, "kind": "accuracy", "replay": accuracy, "live": run.outcome.accuracy, "cause": cause}
        )
    latency_ms = float(cache.latency_ms_SX[cell])
    if np.isfinite(latency_ms) and np.isfinite(run.latency_ms) and latency_ms > 0:
        relative_error[cell] = run.latency_ms / latency_ms - 1.0


def _setting_cause(run: LiveRun, policy: Policy, cache: Cache, tables: ReplayTables) -> dict[str, Any]:
    """Returns why the live choice differs from replay's, checking the policy's inputs in the order it receives them."""
    feature_D = tables.language_feature_SD[run.sample]
    if not np.array_equal(feature_D, run.language_feature_D):
        return {"cause": "the language feature differs", "by": _largest(feature_D, run.language_feature_D)}
    if not tables.available_SX[run.sample, run.setting_index]:
        return {"cause": "replay could not choose it: the cache has no outcome for it"}
    if run.token_D is None:
        return {"cause": "the policy chose differently from equal inputs"}
    token_D = _cached_token(run, cache, tables)
    if token_D is None:
        return {"cause": "replay could not choose it: the cache has no latency token there"}
    if not np.array_equal(token_D, run.token_D):
        return {"cause": "the latency token differs", "by": _largest(token_D, run.token_D)}
    requests = request_of(tables, run.sample, feature_D, run.budget_ms)
    tier_B, position_B = policy.choose_image(requests)
    top_k_B, num_blocks_B = policy.choose_compute(requests, tier_B, position_B, token_D[None])
    alone = int(tables.space.setting_index(tier_B, position_B, top_k_B, num_blocks_B)[0])
    if alone == run.setting_index:
        return {"cause": "a near tie in the policy: rounding differs between a single request and a batch"}
    return {"cause": "the policy chose differently from equal inputs"}


def _largest(one_D: NDArray[np.floating], other_D: NDArray[np.floating]) -> float | None:
    if one_D.shape != other_D.shape:
        return None
    return float(np.abs(one_D.astype(np.float64) - other_D.astype(np.float64)).max())
