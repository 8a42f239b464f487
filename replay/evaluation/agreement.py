"""Whether the live run did as replay said: setting, answer, accuracy, latency; every difference with its cause."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...data.protocols import Policy
from ..policies.reward_table import RewardTable
from .live import LiveRun, request_of

if TYPE_CHECKING:
    from ...data.cache.reader import Cache

ACCURACY_TOLERANCE = 1e-6  # the cache keeps float32


def agreement(
    runs: Sequence[LiveRun],
    policies: Mapping[str, Policy],
    replayed: Mapping[tuple[str, int, float], int],
    cache: Cache,
    table: RewardTable,
) -> dict[str, Any]:
    """Returns counts of what agrees, and a list of every disagreement.

    `replayed` maps (policy, sample, budget as float32) to the setting that replay chose. Requests that replay has no
    counterpart for (a budget outside the grid, a row that the cache lacks) are counted apart and not compared.
    """
    counts: Counter[str] = Counter(requests=len(runs))
    disagreements: list[dict[str, Any]] = []
    relative_error: dict[tuple[int, int], float] = {}
    for run in runs:
        found = {
            "policy": run.policy,
            "sample_id": table.tables.sample_ids[run.sample],
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
                cause = _setting_cause(run, policies[run.policy], cache, table)
                replay = str(table.tables.space.settings[expected])
                disagreements.append({**found, "kind": "setting", "replay": replay, "live": str(run.setting), **cause})
        _compare_inputs(run, cache, table, counts)
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


def _compare_inputs(run: LiveRun, cache: Cache, table: RewardTable, counts: Counter[str]) -> None:
    """Counts whether what the policy saw is bit-equal to what the cache holds."""
    counts["features_compared"] += 1
    counts["same_feature"] += np.array_equal(table.language_feature_SD[run.sample], run.language_feature_D)
    token_D = _cached_token(run, cache, table)
    if token_D is not None and run.token_D is not None:
        counts["tokens_compared"] += 1
        counts["same_token"] += np.array_equal(token_D, run.token_D)


def _cached_token(run: LiveRun, cache: Cache, table: RewardTable) -> NDArray[np.float16] | None:
    """Returns the cache's token where the run read its own; None where it has none, or not for that budget."""
    space, tokens = table.tables.space, cache.tokens
    budget = np.flatnonzero(table.budgets_ms_M == np.float32(run.budget_ms))
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
    """Holds the outcome against what the cache has of the setting that ran, whether or not replay chose it."""
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


def _setting_cause(run: LiveRun, policy: Policy, cache: Cache, table: RewardTable) -> dict[str, Any]:
    """Why the live choice differs from replay's: what the policy saw, in the order in which it saw it."""
    feature_D = table.language_feature_SD[run.sample]
    if not np.array_equal(feature_D, run.language_feature_D):
        return {"cause": "the language feature differs", "by": _largest(feature_D, run.language_feature_D)}
    if not table.available_SX[run.sample, run.setting_index]:
        return {"cause": "replay could not choose it: the cache has no outcome of it"}
    if run.token_D is None:
        return {"cause": "the policy chose differently from equal inputs"}
    token_D = _cached_token(run, cache, table)
    if token_D is None:
        return {"cause": "replay could not choose it: the cache has no latency token there"}
    if not np.array_equal(token_D, run.token_D):
        return {"cause": "the latency token differs", "by": _largest(token_D, run.token_D)}
    requests = request_of(table, run.sample, feature_D, run.budget_ms)
    tier_B, position_B = policy.choose_image(requests)
    top_k_B, num_blocks_B = policy.choose_compute(requests, tier_B, position_B, token_D[None])
    alone = int(table.axes.setting_index(tier_B, position_B, top_k_B, num_blocks_B)[0])
    if alone == run.setting_index:
        return {"cause": "a near tie in the policy: alone and in a batch it rounds differently"}
    return {"cause": "the policy chose differently from equal inputs"}


def _largest(one_D: NDArray[np.floating], other_D: NDArray[np.floating]) -> float | None:
    if one_D.shape != other_D.shape:
        return None
    return float(np.abs(one_D.astype(np.float64) - other_D.astype(np.float64)).max())
