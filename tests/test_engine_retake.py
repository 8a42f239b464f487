"""Timings of a slow spell are taken again when the part's samples are done; the faster ones are the rows'."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from knobctl.precompute.latency.slow_spells import Pace
from knobctl.precompute.run import sample as sample_run
from knobctl.precompute.run.config import PrecomputeConfig
from knobctl.precompute.run.sample import MeasureConfig, SampleResult, SampleRunner
from knobctl.precompute.run.work_counts import Ledger
from knobctl.precompute.scale.launch import precompute
from knobctl.tests.support.engine_world import SMALL_SPACE, easy_samples, tiny_knobs, write_tiny_model

SAMPLES = 12
IN_SPELL = 10  # the sample that is timed while the machine is slow, behind enough to know what is usual


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny", 6, native_top_k=4)


@pytest.fixture(scope="module")
def knobs(model_dir):
    return tiny_knobs(model_dir, space=SMALL_SPACE)


def constant_times(slowness: Callable[[int], float]) -> Callable[..., Any]:
    """Timing as it is, but every duration is the given number of ms: the n-th call's, from 0."""
    measure, calls = sample_run.measure_blocks, iter(range(10_000))

    def timed(*args: Any, **options: Any) -> Any:
        times, checks = measure(*args, **options)
        ms = slowness(next(calls))
        arrays = {field.name: getattr(times, field.name) * 0 + ms for field in fields(times) if field.name != "top_ks"}
        return replace(times, **arrays), checks

    return timed


def slow_at_times(monkeypatch, slowness: Callable[[int], float]) -> None:
    """Durations are as given, and prompts all count as alike."""
    monkeypatch.setattr(sample_run, "measure_blocks", constant_times(slowness))
    monkeypatch.setattr(sample_run, "_alike", lambda prompt: prompt.vision_tokens)


def run(knobs, monkeypatch, slowness: Callable[[int], float]) -> tuple[SampleRunner, list[SampleResult]]:
    slow_at_times(monkeypatch, slowness)
    runner = SampleRunner(knobs, MeasureConfig(runs=1, checks_per_tiling=1), Ledger(), pace=Pace())
    return runner, [runner.run(sample) for sample in easy_samples(SAMPLES)]


def vision_ms(result: SampleResult) -> set[float]:
    return {row.vision_ms for row in result.outcomes.values()}


@pytest.fixture
def tilings(knobs):
    """Prompts of every sample: its tiers give so many different images."""
    sample = easy_samples(1)[0]
    rgb = knobs.pixels(sample)
    return len({knobs.tiling(rgb, tier) for tier in knobs.space.tiers})


def in_spell(call: int, tilings: int) -> bool:
    return call // tilings == IN_SPELL


def test_rows_of_a_slow_spell_get_the_later_timing(knobs, monkeypatch, tilings):
    runner, results = run(knobs, monkeypatch, lambda call: 9.0 if in_spell(call, tilings) else 1.0)
    assert vision_ms(results[IN_SPELL]) == {9.0}
    before = [dict(result.outcomes) for result in results]
    runner.retake_slowed()
    assert runner.ledger.counts["timings_retaken"] == tilings
    for place, result in enumerate(results):
        assert vision_ms(result) == {1.0}
        same = result.outcomes == before[place]
        assert same is (place != IN_SPELL)
    assert len(results[IN_SPELL].checks) == tilings


def test_a_later_timing_that_is_slower_is_not_kept(knobs, monkeypatch, tilings):
    slow_from = SAMPLES * tilings
    runner, results = run(
        knobs, monkeypatch, lambda call: 20.0 if call >= slow_from else 9.0 if in_spell(call, tilings) else 1.0
    )
    runner.retake_slowed()
    assert vision_ms(results[IN_SPELL]) == {9.0}
    assert runner.ledger.counts["timings_retaken"] == sample_run.RETAKES * tilings


def test_no_timing_is_taken_again_on_a_steady_machine(knobs, monkeypatch):
    runner, results = run(knobs, monkeypatch, lambda _: 2.0)
    runner.retake_slowed()
    assert runner.ledger.counts["timings_retaken"] == 0
    assert {ms for result in results for ms in vision_ms(result)} == {2.0}


def test_a_run_remembers_over_its_parts_and_writes_the_later_timing(model_dir, monkeypatch, tilings, tmp_path):
    slow_at_times(monkeypatch, lambda call: 9.0 if in_spell(call, tilings) else 1.0)
    config = PrecomputeConfig(
        model=str(model_dir),
        datasets=("easy_vqa",),
        out=tmp_path / "cache",
        samples=SAMPLES,
        device="cpu",
        space=SMALL_SPACE,
        runs=1,
        importance_samples=5,
        max_new_tokens={"easy_vqa": 3},
        part_samples=3,
    )
    report = precompute(config)
    assert report["execution"]["counts"]["timings_retaken"] == tilings
    written = pl.read_parquet(tmp_path / "cache" / "outcomes" / "*.parquet")
    assert written["sample_id"].n_unique() == SAMPLES
    assert set(written["vision_ms"]) == {1.0}
