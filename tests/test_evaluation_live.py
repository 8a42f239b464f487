"""Live runs with the cache as executor: full agreement, and the cause of every kind of disagreement."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from rich.console import Console

from knobctl.data.cache.executor import CacheExecutor
from knobctl.data.cache.reader import Cache, open_cache
from knobctl.data.errors import KnobctlError
from knobctl.data.knobs import KnobSetting
from knobctl.data.outcome import Outcome
from knobctl.data.protocols import LiveSystem, RequestTiming, RequestToTime, TimeRequests
from knobctl.data.samples import Sample
from knobctl.replay.evaluation.report import EvaluationReport
from knobctl.replay.evaluation.validate import validate_controllers
from knobctl.replay.report.live_tables import render_live
from knobctl.tests.support.cache_timer import cache_timer
from knobctl.tests.support.caches import BUDGETS_MS, make_cache
from knobctl.tests.support.random_controllers import random_controllers

SAMPLES = 40


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    path = tmp_path_factory.mktemp("live") / "cache"
    cache = open_cache(make_cache(path, samples=SAMPLES))
    random_controllers(cache, path.parent / "controllers")
    return cache


def samples_of(cache: Cache, ids: Sequence[str]) -> Mapping[str, Sample]:
    rows = {row["sample_id"]: row for row in cache.samples.iter_rows(named=True)}
    return {
        name: Sample(name, rows[name]["dataset"], "test", rows[name]["question"], ("a",), rows[name]["image_id"], None)
        for name in ids
    }


def validated(
    cache: Cache, executor: CacheExecutor, timer: TimeRequests | None = None, **options: object
) -> EvaluationReport:
    return validate_controllers(
        cache.path.parent / "controllers",
        cache.path,
        resamples=50,
        live=lambda ids: LiveSystem(executor, samples_of(cache, ids), timer or cache_timer(cache)),
        **options,
    )


def test_the_cache_as_executor_agrees_with_replay(cache: Cache):
    report = validated(cache, CacheExecutor(cache))
    found = report.live["agreement"]
    requests = report.n_samples * len(BUDGETS_MS) * 3  # controllers, full, cheapest
    assert found["requests"] == found["settings_compared"] == found["same_setting"] == requests
    assert found["answers_compared"] == found["same_answer"] == found["same_accuracy"] == requests
    assert found["same_feature"] == requests
    assert found["tokens_compared"] == found["same_token"] == requests // 3
    assert found["timed_compared"] == found["same_timed"] == requests // 3
    assert found["disagreements"] == []
    error = found["latency_error"]
    assert max(error[name]["p95_absolute"] for name in error) < 1e-6
    # The references share one timing over all budgets, the controllers have one for each.
    samples = report.n_samples
    assert sum(error[name]["timings"] for name in error) <= len(report.live["timings"])
    assert samples * 2 < len(report.live["timings"]) <= samples * (2 + len(BUDGETS_MS))
    for name, figures in report.live["policies"].items():
        replayed = report.policies[name].overall.metrics
        for metric in ("accuracy", "reward", "latency_ms", "violation_rate"):
            assert figures["all_budgets"][metric]["value"] == pytest.approx(replayed[metric].value, abs=1e-6)
        assert figures["all_budgets"]["latency_p95_ms"] == pytest.approx(replayed["latency_p95_ms"].value, rel=1e-6)


def test_latencies_include_the_controllers_own_time(cache: Cache):
    without = validated(cache, CacheExecutor(cache)).live
    report = validated(cache, CacheExecutor(cache), cache_timer(cache, controllers_ms=0.25))
    overhead = report.live["overhead"]["controllers"]
    assert overhead["p50_ms"] == overhead["p95_ms"] == 0.25
    assert 0 < overhead["p50_share"] <= overhead["p95_share"] < 1
    for name, own_ms in (("controllers", 0.25), ("full", 0.0)):
        found, reference = (live["policies"][name]["all_budgets"]["latency_ms"] for live in (report.live, without))
        assert found["value"] == pytest.approx(reference["value"] + own_ms, abs=1e-4)
    shown = rendered(report)
    assert f"own time 0.25 ms ({overhead['p50_share']:.1%} of a request) in the median" in shown
    assert f"0.25 ms ({overhead['p95_share']:.1%} of a request) at p95" in shown


def test_without_a_timer_the_requests_are_compared_and_have_no_latency(cache: Cache):
    report = validate_controllers(
        cache.path.parent / "controllers",
        cache.path,
        resamples=50,
        live=lambda ids: LiveSystem(CacheExecutor(cache), samples_of(cache, ids), None),
    )
    assert report.live["agreement"]["same_setting"] == report.live["agreement"]["requests"]
    assert set(report.live["agreement"]["latency_error"].values()) == {None}
    assert report.live["overhead"] == {"controllers": None}
    assert report.live["timings"] == []
    for figures in report.live["policies"].values():
        assert "latency_ms" not in figures["all_budgets"]
        assert figures["all_budgets"]["without_latency"] == figures["all_budgets"]["requests"]
    assert "own time" not in rendered(report)


def rendered(report: EvaluationReport) -> str:
    console = Console(width=200)
    with console.capture() as captured:
        console.print(render_live(report.live))
    return captured.get()


class Altered(CacheExecutor):
    """The cache's executor with one change for one sample."""

    def __init__(self, cache: Cache, kind: str, sample_id: str) -> None:
        super().__init__(cache)
        self.kind, self.sample_id, self.finished = kind, sample_id, 0

    def language_feature(self, sample: Sample) -> np.ndarray:
        feature_D = super().language_feature(sample)
        return -3.0 * feature_D if (self.kind, self.sample_id) == ("feature", sample.sample_id) else feature_D

    def latency_token(self, sample: Sample, *place: object) -> tuple[np.ndarray, object]:
        token_D, handle = super().latency_token(sample, *place)
        changed = (self.kind, self.sample_id) == ("token", sample.sample_id)
        return (-3.0 * token_D if changed else token_D), handle

    def finish(self, handle: object, top_k: int, num_blocks: int) -> Outcome:
        self.finished += 1
        outcome = super().finish(handle, top_k, num_blocks)
        if self.cache.sample_ids[handle.sample] != self.sample_id:
            return outcome
        changes = {
            "answer": {"answer": "something else", "accuracy": 0.25},
            "accuracy": {"accuracy": 0.25},
        }
        return dataclasses.replace(outcome, **changes.get(self.kind, {}))


@pytest.mark.parametrize(
    ("kind", "causes"),
    [
        ("feature", {"setting: the language feature differs"}),
        ("token", {"setting: the latency token differs"}),
        (
            "answer",
            {"answer: the model generated another answer under the same setting", "accuracy: the answer differs"},
        ),
        ("accuracy", {"accuracy: the same answer scored differently: other metric or reference answers"}),
        (
            "timed setting",
            {"timed: the engine's single probe gave another token than the cache's grid of probes"},
        ),
        ("timed tier", {"timed: Stage1 chose differently from equal inputs"}),
        ("timed answer", {"timed: the engine generated another answer under the same setting"}),
        ("latency", set()),
    ],
)
def test_every_disagreement_is_counted_and_listed_with_its_cause(cache: Cache, kind: str, causes: set[str]):
    sample_id = cache.sample_ids[int(cache.indices("test")[0])]
    (low, *_, high) = cache.space.tiers

    def altered(request: RequestToTime, timing: RequestTiming) -> RequestTiming:
        if request.sample.sample_id != sample_id or not request.controlled:
            return timing
        changes = {
            "answer": {"answer": "something else"},
            "timed setting": {
                "setting": dataclasses.replace(
                    timing.setting, top_k=next(k for k in cache.space.top_k if k != timing.setting.top_k)
                )
            },
            "timed tier": {
                "setting": dataclasses.replace(timing.setting, tier={low: high}.get(timing.setting.tier, low))
            },
            "timed answer": {"answer": "something else"},
            "latency": {"latency_ms": 2.0 * timing.latency_ms},
        }
        return timing._replace(**changes.get(kind, {}))

    # The timed run follows the executor's altered choice by itself: it gets the setting that was chosen.
    report = validated(cache, Altered(cache, kind, sample_id), cache_timer(cache, altered))
    found = report.live["agreement"]
    assert set(found["causes"]) == causes
    assert {item["sample_id"] for item in found["disagreements"]} == ({sample_id} if causes else set())
    assert sum(found["causes"].values()) == len(found["disagreements"])
    missing = found["settings_compared"] - found["same_setting"]
    assert missing == sum(item["kind"] == "setting" for item in found["disagreements"])
    assert found["accuracies_compared"] - found["same_accuracy"] == sum(
        item["kind"] == "accuracy" for item in found["disagreements"]
    )
    assert found["same_feature"] == found["features_compared"] - (len(BUDGETS_MS) * 3 if kind == "feature" else 0)
    assert found["same_token"] == found["tokens_compared"] - (len(BUDGETS_MS) if kind == "token" else 0)
    if kind == "latency":
        assert found["latency_error"]["with_controllers"]["mean_signed"] > 0.01
        assert found["latency_error"]["given_settings"]["mean_signed"] == pytest.approx(0.0, abs=1e-6)


def timed(cache: Cache, runs_by_sample_ms: Mapping[str, tuple[float, ...]]) -> TimeRequests:
    """Returns a timer with other timed runs, given by sample."""

    def change(request: RequestToTime, timing: RequestTiming) -> RequestTiming:
        runs_ms = runs_by_sample_ms.get(request.sample.sample_id, (7.0, 900.0, 6.0))
        return timing._replace(latency_ms=float(np.median(runs_ms)), latency_runs_ms=runs_ms)

    return cache_timer(cache, change)


def test_a_stall_changes_the_mean_reward_but_not_the_median(cache: Cache):
    """The penalty of a missed budget is unbounded, so a single stalled sample dominates the mean."""
    assert min(BUDGETS_MS) > 7.0
    stalled = cache.sample_ids[int(cache.indices("test")[0])]
    report = validated(cache, CacheExecutor(cache), timed(cache, {stalled: (7000.0, 8000.0, 6.0)}))
    shown = rendered(report)
    assert re.search(r"median\s+policy .* mean reward +reward", shown)
    for name, figures in report.live["policies"].items():
        for found in (figures["all_budgets"], *figures["per_budget"]):
            mean, median = found["reward"]["value"], found["reward_p50"]
            assert mean < -1000
            assert -0.6 < median["value"] < 1.1  # the value of a request within its budget
            assert median["low"] <= median["value"] <= median["high"]
        row = next(line for line in shown.splitlines() if name in line)
        assert f"{figures['all_budgets']['reward_p50']['value']:.3f}" in row


def test_the_report_holds_every_timed_run_with_the_budgets_it_holds_for(cache: Cache):
    report = validated(cache, CacheExecutor(cache), timed(cache, {}))
    chosen = {
        (name, cache.sample_ids[sample], cache.space.settings[setting], budget_ms)
        for name in ("controllers", "full", "cheapest")
        for sample, row in zip(report.decisions.sample_N, report.decisions.chosen[name], strict=True)
        for setting, budget_ms in zip(row, BUDGETS_MS, strict=True)
    }
    kept = set()
    for row in json.loads(report.to_json())["live"]["timings"]:
        assert (row["latency_ms"], row["latency_runs_ms"], row["controllers_ms"]) == (7.0, [7.0, 900.0, 6.0], 0.0)
        setting = KnobSetting(*(row[name] for name in ("tier", "insertion_position", "top_k", "num_blocks")))
        kept |= {(row["policy"], row["sample_id"], setting, budget_ms) for budget_ms in row["budgets_ms"]}
    assert kept == chosen


def test_each_setting_of_a_sample_is_run_once(cache: Cache):
    executor = Altered(cache, "nothing", "nobody")
    report = validated(cache, executor)
    chosen = np.concatenate([report.decisions.chosen[name] for name in ("controllers", "full", "cheapest")], axis=1)
    assert executor.finished == sum(len(set(row)) for row in chosen.tolist())


def test_part_of_the_split_can_be_run_drawn_with_the_seed(cache: Cache):
    report = validated(cache, CacheExecutor(cache), live_samples=2)
    assert report.live["n_samples"] == 2
    assert report.live["agreement"]["requests"] == 2 * len(BUDGETS_MS) * 3
    with pytest.raises(KnobctlError, match="at least one sample"):
        validated(cache, CacheExecutor(cache), live_samples=0)


def test_a_budget_outside_the_grid_runs_live_and_is_not_compared(cache: Cache):
    class AnyBudget(CacheExecutor):
        def latency_token(self, sample: Sample, tier: str, insertion_position: int, budget_ms: float) -> tuple:
            return super().latency_token(sample, tier, insertion_position, 40.0 if budget_ms == 55.0 else budget_ms)

    alone = validated(cache, AnyBudget(cache), live_budgets_ms=(55.0,))
    assert alone.live["agreement"]["outside_replay"] == alone.n_samples * 3
    report = validated(cache, AnyBudget(cache), live_budgets_ms=(40.0, 55.0))
    found = report.live["agreement"]
    assert report.live["budgets_ms"] == [40.0, 55.0]
    assert found["outside_replay"] == found["settings_compared"] == report.n_samples * 3
    assert found["disagreements"] == []


def test_a_sample_that_is_not_available_raises_a_clear_error(cache: Cache):
    with pytest.raises(KnobctlError, match="samples of the cache cannot be run, because their question or image"):
        validate_controllers(
            cache.path.parent / "controllers",
            cache.path,
            resamples=10,
            baselines=["oracle"],
            live=lambda _: LiveSystem(CacheExecutor(cache), {}, None),
        )
