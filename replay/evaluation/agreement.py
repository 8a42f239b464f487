"""Agreement of a live run with replay: setting, answer, accuracy, latency; every difference with its cause.

The timed executions by the engine are compared too, with the same requests run in two calls.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...data.protocols import Policy, RequestTiming
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
    relative_error: dict[tuple[bool, int, RequestTiming], float] = {}  # by whether controllers ran, sample, timing
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
        _compare_outcome(run, cache, counts, found, disagreements)
        if run.timing is not None:
            _compare_timed(run, run.timing, counts, found, disagreements)
            _compare_latency(run, run.timing, cache, relative_error)
    causes = Counter(f"{item['kind']}: {item['cause']}" for item in disagreements)
    return {
        **{name: int(counts[name]) for name in _COUNTS},
        "disagreements": disagreements,
        "causes": dict(causes.most_common()),
        "latency_error": {
            name: _spread([error for (controlled, *_), error in relative_error.items() if controlled == is_controlled])
            for name, is_controlled in (("with_controllers", True), ("given_settings", False))
        },
    }


def _spread(errors: Sequence[float]) -> dict[str, Any] | None:
    """Returns figures of relative errors; None if there are none."""
    if not errors:
        return None
    size = np.abs(errors)
    return {
        "timings": len(errors),
        "mean_signed": float(np.mean(errors)),
        "median_absolute": float(np.median(size)),
        "p95_absolute": float(np.quantile(size, 0.95)),
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
    "timed_compared",
    "same_timed",
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


def _compare_timed(
    run: LiveRun,
    timing: RequestTiming,
    counts: Counter[str],
    found: dict[str, Any],
    disagreements: list[dict[str, Any]],
) -> None:
    """Compares what was executed while the clock ran with the same request run in two calls."""
    if timing.answer is None:  # the setting was given
        return
    counts["timed_compared"] += 1
    live = (str(timing.setting), timing.answer)
    two_calls = (str(run.setting), run.outcome.answer)
    counts["same_timed"] += live == two_calls
    if live != two_calls:
        one, other = timing.setting, run.setting
        if (one.tier, one.insertion_position) != (other.tier, other.insertion_position):
            cause = "Stage1 chose differently from equal inputs"
        elif one != other:
            cause = "the engine's single probe gave another token than the cache's grid of probes"
        else:
            cause = "the engine generated another answer under the same setting"
        disagreements.append({**found, "kind": "timed", "two_calls": two_calls, "live": live, "cause": cause})


def _compare_latency(
    run: LiveRun, timing: RequestTiming, cache: Cache, relative_error: dict[tuple[bool, int, RequestTiming], float]
) -> None:
    """Compares a latency, with that of the controllers if they ran, with the cache's latency of the same setting."""
    cached_ms = float(cache.latency_ms_SX[run.sample, cache.space.index(timing.setting)])
    if np.isfinite(cached_ms) and cached_ms > 0:
        relative_error[timing.answer is not None, run.sample, timing] = timing.latency_ms / cached_ms - 1.0


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
