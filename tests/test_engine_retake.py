"""Timings taken in a slow spell of the machine are repeated at the end of the part; rows get the faster timing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest

from knobctl.data.outcome import Outcome
from knobctl.precompute.latency.block_times import FORCED_STEPS, BlockTimes, LatencyCheck
from knobctl.precompute.latency.slow_spells import Pace
from knobctl.precompute.run import sample as sample_run
from knobctl.precompute.run.sample import MeasureConfig, SampleResult, SampleRunner
from knobctl.precompute.run.work_counts import Ledger
from knobctl.precompute.scale.launch import precompute
from knobctl.tests.support.dataset_files import png, write_json_lines
from knobctl.tests.support.tiny_model import SMALL_SPACE, easy_samples, run_config, tiny_knobs

SAMPLES = 12
IN_SPELL = 10  # the sample timed during the slow spell, after enough others to establish the normal pace
QUESTION = "is there a circle?"  # the same for all samples: prompts of equal length share one pace
TILINGS = 2  # per image: its tiers are tiled differently


@pytest.fixture(scope="module")
def knobs(tiny_model_dir):
    return tiny_knobs(tiny_model_dir, space=SMALL_SPACE)


def fake_timing(slowness: Callable[[int], float]) -> Callable[..., Any]:
    """A `measure_blocks` that runs no model: every duration in call n (from 0) is `slowness(n)` ms."""
    calls = iter(range(10_000))

    def timed(knobs, _prepared, *, runs, end_to_end, **_options):
        ms = slowness(next(calls))
        blocks = knobs.num_blocks
        passes = tuple((top_k,) * blocks for top_k in sorted({*knobs.space.top_k, max(knobs.native)}))
        times = BlockTimes(
            passes,
            vision_R=np.full(runs, ms),
            head_R=np.full(runs, ms),
            prefill_RBK=np.full((runs, blocks, len(passes)), ms),
            overhead_RT=np.full((runs, FORCED_STEPS), ms),
            decode_RTBK=np.full((runs, FORCED_STEPS, blocks, len(passes)), ms),
        )
        return times, [LatencyCheck((ms,) * 4, (ms,) * 4) for _ in end_to_end]

    return timed


def run(knobs, monkeypatch, slowness: Callable[[int], float]) -> tuple[SampleRunner, list[SampleResult]]:
    """Runs the samples as one part. All answers are known, so only latency tokens and timings are computed."""
    monkeypatch.setattr(sample_run, "measure_blocks", fake_timing(slowness))
    runner = SampleRunner(knobs, MeasureConfig(runs=1, checks_per_tiling=1), Ledger(), pace=Pace())
    known = {setting: Outcome("yes", 1.0, None, output_tokens=2) for setting in knobs.space.settings}
    return runner, [runner.run(replace(sample, question=QUESTION), known) for sample in easy_samples(SAMPLES)]


def vision_ms(result: SampleResult) -> set[float]:
    return {row.vision_ms for row in result.outcomes.values()}


def in_spell(call: int) -> bool:
    return call // TILINGS == IN_SPELL


def test_rows_timed_in_a_slow_spell_get_the_repeated_timing(knobs, monkeypatch):
    runner, results = run(knobs, monkeypatch, lambda call: 9.0 if in_spell(call) else 1.0)
    assert vision_ms(results[IN_SPELL]) == {9.0}
    before = [dict(result.outcomes) for result in results]
    runner.retake_slowed()
    assert runner.ledger.counts["timings_retaken"] == TILINGS
    for place, result in enumerate(results):
        assert vision_ms(result) == {1.0}
        same = result.outcomes == before[place]
        assert same is (place != IN_SPELL)
    assert len(results[IN_SPELL].checks) == TILINGS


def test_a_slower_repeated_timing_is_discarded(knobs, monkeypatch):
    runner, results = run(
        knobs, monkeypatch, lambda call: 20.0 if call >= SAMPLES * TILINGS else 9.0 if in_spell(call) else 1.0
    )
    runner.retake_slowed()
    assert vision_ms(results[IN_SPELL]) == {9.0}
    assert runner.ledger.counts["timings_retaken"] == sample_run.RETAKES * TILINGS


def test_no_timing_is_repeated_on_a_steady_machine(knobs, monkeypatch):
    runner, results = run(knobs, monkeypatch, lambda _: 2.0)
    runner.retake_slowed()
    assert runner.ledger.counts["timings_retaken"] == 0
    assert {ms for result in results for ms in vision_ms(result)} == {2.0}


def test_a_run_keeps_the_pace_across_parts_and_writes_the_repeated_timing(
    tiny_model_dir, tiny_importance, monkeypatch, tmp_path
):
    monkeypatch.setattr(sample_run, "measure_blocks", fake_timing(lambda call: 9.0 if in_spell(call) else 1.0))
    entries = [
        {"image": f"{row}.png", "question": QUESTION, "answers": ["yes"], "question_id": row} for row in range(SAMPLES)
    ]
    for row, entry in enumerate(entries):
        (tmp_path / entry["image"]).write_bytes(png(row, (64, 64)))
    source = write_json_lines(tmp_path / "own.jsonl", entries)
    config = run_config(
        tiny_model_dir,
        tmp_path / "cache",
        datasets=(f"own={source}",),
        samples=SAMPLES,
        runs=1,
        importance=tiny_importance,
        max_new_tokens={"own": 3},
    )
    report = precompute(config)
    assert report["execution"]["counts"]["timings_retaken"] == TILINGS
    written = pl.read_parquet(tmp_path / "cache" / "outcomes" / "*.parquet")
    assert written["sample_id"].n_unique() == SAMPLES
    assert set(written["vision_ms"]) == {1.0}
