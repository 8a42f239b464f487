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
from knobctl.data.samples import Sample
from knobctl.replay.evaluation.report import EvaluationReport
from knobctl.replay.evaluation.validate import validate_controllers
from knobctl.replay.report.live_tables import render_live
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


def validated(cache: Cache, executor: CacheExecutor, **options: object) -> EvaluationReport:
    return validate_controllers(
        cache.path.parent / "controllers",
        cache.path,
        resamples=50,
        executor_factory=lambda ids: (executor, samples_of(cache, ids)),
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
    assert found["disagreements"] == []
    assert found["latency_error"]["p95_absolute"] < 1e-6
    for name, figures in report.live["policies"].items():
        replayed = report.policies[name].overall.metrics
        for metric in ("accuracy", "reward", "latency_ms", "violation_rate"):
            assert figures["all_budgets"][metric]["value"] == pytest.approx(replayed[metric].value, abs=1e-6)
        assert figures["all_budgets"]["latency_p95_ms"] == pytest.approx(replayed["latency_p95_ms"].value, rel=1e-6)
    overhead = report.live["overhead"]["controllers"]
    assert 0 < overhead["p50_ms"] <= overhead["p95_ms"]
    assert 0 < overhead["p50_share"] <= overhead["p95_share"] < 1
    shown = rendered(report)
    assert f"own time {overhead['p50_ms']:.2f} ms ({overhead['p50_share']:.1%} of a request) in the median" in shown
    assert f"{overhead['p95_ms']:.2f} ms ({overhead['p95_share']:.1%} of a request) at p95" in shown


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
            "latency": {"latency_ms": 2.0 * outcome.latency_ms, "latency_runs_ms": ()},
            "stall": {"latency_ms": 1000.0 * outcome.latency_ms, "latency_runs_ms": ()},
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
        ("latency", set()),
    ],
)
def test_every_disagreement_is_counted_and_listed_with_its_cause(cache: Cache, kind: str, causes: set[str]):
    sample_id = cache.sample_ids[int(cache.indices("test")[0])]
    report = validated(cache, Altered(cache, kind, sample_id))
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
        assert found["latency_error"]["mean_signed"] > 0.01


class Timed(CacheExecutor):
    """The cache's executor with other timed runs, given by sample."""

    def __init__(self, cache: Cache, runs_ms: Mapping[str, tuple[float, ...]]) -> None:
        super().__init__(cache)
        self.runs_ms = runs_ms

    def finish(self, handle: object, top_k: int, num_blocks: int) -> Outcome:
        runs_ms = self.runs_ms.get(self.cache.sample_ids[handle.sample], (7.0, 900.0, 6.0))
        outcome = super().finish(handle, top_k, num_blocks)
        return dataclasses.replace(outcome, latency_ms=float(np.median(runs_ms)), latency_runs_ms=runs_ms)


def test_a_stall_changes_the_mean_reward_but_not_the_median(cache: Cache):
    """The penalty of a missed budget is unbounded, so a single stalled sample dominates the mean."""
    assert min(BUDGETS_MS) > 7.0
    stalled = cache.sample_ids[int(cache.indices("test")[0])]
    report = validated(cache, Timed(cache, {stalled: (7000.0, 8000.0, 6.0)}))
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


def test_the_report_holds_every_timed_run_once_per_sample_and_setting(cache: Cache):
    report = validated(cache, Timed(cache, {}))
    timings = json.loads(report.to_json())["live"]["timings"]
    chosen = {
        (cache.sample_ids[sample], cache.space.settings[setting])
        for setting_NM in (report.decisions.chosen[name] for name in ("controllers", "full", "cheapest"))
        for sample, row in zip(report.decisions.sample_N, setting_NM, strict=True)
        for setting in row
    }
    kept = [(row.pop("sample_id"), row.pop("latency_ms"), row.pop("latency_runs_ms"), row) for row in timings]
    assert {(sample_id, KnobSetting(**setting)) for sample_id, _, _, setting in kept} == chosen
    assert len(kept) == len(chosen)
    assert all((latency, runs) == (7.0, [7.0, 900.0, 6.0]) for _, latency, runs, _ in kept)


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
            executor_factory=lambda _: (CacheExecutor(cache), {}),
        )
