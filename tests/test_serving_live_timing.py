"""Live requests are timed as whole executions by the engine, and again if a slow spell covered them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from statistics import median
from types import SimpleNamespace

import numpy as np
import pytest

from knobctl.controllers.checkpoint import Controllers
from knobctl.controllers.two_stage import TwoStagePolicy
from knobctl.data.cache.reader import Cache
from knobctl.data.errors import KnobctlError
from knobctl.data.knobs import KnobSetting
from knobctl.data.progress import SILENT
from knobctl.data.protocols import RequestToTime
from knobctl.precompute.run.live import LiveExecutor
from knobctl.serving.answer import StageLatency
from knobctl.serving.engine import Engine
from knobctl.serving.live_timing import LiveTimer
from knobctl.tests.support.answering import answering_controllers
from knobctl.tests.support.tiny_model import easy_samples, tiny_knobs
from knobctl.tests.support.two_calls import two_calls

SAMPLES = easy_samples(2)
RUNS = 3


@pytest.fixture(scope="module")
def controllers(tiny_cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Controllers:
    return answering_controllers(tiny_cache, tmp_path_factory.mktemp("timing") / "controllers")


@pytest.fixture(scope="module")
def engine(controllers: Controllers) -> Engine:
    return Engine(controllers, device="cpu", warm_up=0)


def test_the_controllers_choose_again_while_the_clock_runs(engine, controllers, tiny_model_dir):
    """Also for budgets that no setting is expected to meet, and for those that are not whole ms, as in replay."""
    policy = TwoStagePolicy(controllers)
    knobs = tiny_knobs(tiny_model_dir, space=controllers.space, importance=controllers.conditions.importance)
    knobs.encoder, budgets_ms = controllers.budget_encoder, (2.5, 2.9, 61.0)
    live = LiveExecutor(dataclasses.replace(knobs, tasks=controllers.conditions.tasks, budgets_ms=budgets_ms))
    for sample in SAMPLES:
        for budget_ms in budgets_ms:
            setting, text = two_calls(live, policy, sample, budget_ms)
            request = RequestToTime(sample, budget_ms, KnobSetting(*setting), None, controlled=True)
            (timing,) = LiveTimer(engine, runs=RUNS)([request], SILENT)
            assert (dataclasses.astuple(timing.setting), timing.answer) == (setting, text)
            assert len(timing.latency_runs_ms) == RUNS
            assert timing.latency_ms == median(timing.latency_runs_ms)
            assert 0 < timing.controllers_ms < timing.latency_ms


def test_a_given_setting_runs_without_controllers_once_for_all_budgets(engine):
    setting = engine.controllers.space.settings[-1]
    requests = [RequestToTime(SAMPLES[0], budget_ms, setting, 2, controlled=False) for budget_ms in (10.0, 20.0)]
    one, other = LiveTimer(engine, runs=RUNS)(requests, SILENT)
    assert one is other
    assert (one.setting, one.answer, one.controllers_ms, len(one.latency_runs_ms)) == (setting, None, 0.0, RUNS)
    with pytest.raises(KnobctlError, match="number of tokens of its answer is not known"):
        LiveTimer(engine, runs=RUNS)([requests[0]._replace(output_tokens=None)], SILENT)


class ScriptedEngine:
    """Answers with latencies that a function of the number of the execution gives."""

    def __init__(self, latency_ms: Iterator[float], expected_ms: float | None = 10.0) -> None:
        self._latency_ms, self._expected_ms = latency_ms, expected_ms
        self.executions = 0
        self.knobs = SimpleNamespace(pixels=lambda _: np.zeros((1, 1, 3), np.uint8))

    def answer_as_replayed(self, *_: object) -> SimpleNamespace:
        self.executions += 1
        return SimpleNamespace(
            setting=KnobSetting("low", 1, 2, 4),
            text="no",
            latency_ms=StageLatency(0.0, next(self._latency_ms), 0.0, 0.0),
            expected_latency_ms=self._expected_ms,
            output_tokens=1,
        )


def scripted(latency_ms: Iterator[float], count: int) -> tuple[list[float], int]:
    """Returns the latencies of `count` requests and the number of executions."""
    engine = ScriptedEngine(latency_ms)
    setting = KnobSetting("low", 1, 2, 4)
    requests = [RequestToTime(SAMPLES[0], float(budget), setting, 1, controlled=True) for budget in range(1, count + 1)]
    timings = LiveTimer(engine, runs=RUNS)(requests, SILENT)
    return [timing.latency_ms for timing in timings], engine.executions


def test_requests_in_a_slow_spell_are_timed_again():
    executions = RUNS + 1

    def spell() -> Iterator[float]:
        yield from [10.0] * (12 * executions)
        yield from [25.0] * (3 * executions)
        while True:
            yield 10.0

    latencies_ms, made = scripted(spell(), 20)
    assert latencies_ms == [10.0] * 20
    assert made == (20 + 3) * executions


def test_a_machine_that_stays_slow_is_not_timed_for_ever():
    executions = RUNS + 1

    def slower() -> Iterator[float]:
        yield from [10.0] * (12 * executions)
        while True:
            yield 25.0

    latencies_ms, made = scripted(slower(), 20)
    assert latencies_ms == [10.0] * 12 + [25.0] * 8
    assert made <= (20 + 20 // 4) * executions


def test_without_an_expected_latency_no_request_seems_slow():
    """Requests under different settings cannot be compared then."""

    def rising() -> Iterator[float]:
        latency_ms = 10.0
        while True:
            yield from [latency_ms] * (RUNS + 1)
            latency_ms *= 1.5

    engine = ScriptedEngine(rising(), expected_ms=None)
    setting = KnobSetting("low", 1, 2, 4)
    requests = [RequestToTime(SAMPLES[0], float(budget), setting, 1, controlled=True) for budget in range(1, 21)]
    timings = LiveTimer(engine, runs=RUNS)(requests, SILENT)
    assert engine.executions == len(requests) * (RUNS + 1)
    assert timings[3].latency_ms == pytest.approx(10.0 * 1.5**3)
