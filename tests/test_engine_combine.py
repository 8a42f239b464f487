"""`--from-results` with a model: answers apply to settings that run the same blocks; tokens and times are measured."""

from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl
import pytest

from knobctl.data.cache.reader import open_cache
from knobctl.data.errors import KnobctlError
from knobctl.data.importer import ImportReport, RecordedOutcomes, save_importance
from knobctl.data.knobs import KnobSetting, KnobSpace
from knobctl.data.plans import BlockPlan, ImportanceScores, block_plan
from knobctl.precompute.run import recorded as combine
from knobctl.precompute.run.config import PrecomputeConfig
from knobctl.precompute.run.recorded import settings_of_blocks, spread_outcomes
from knobctl.precompute.scale.launch import precompute
from knobctl.tests.support.tiny_model import SMALL_SPACE, easy_samples, published_order, run_config

ALL = tuple(range(16))


def recorded(rows: list[dict]) -> RecordedOutcomes:
    """Returns results in the importer's format; columns missing from `rows` are empty."""
    empty = dict.fromkeys(("accuracy", "answer", "latency_ms", "vision_ms", "prefill_ms", "decode_ms", "output_tokens"))
    schema = dict.fromkeys(("accuracy", "latency_ms", "vision_ms", "prefill_ms", "decode_ms"), pl.Float32)
    table = pl.DataFrame([{**empty, **row} for row in rows], schema_overrides={**schema, "output_tokens": pl.Int32})
    return RecordedOutcomes(table, pl.DataFrame(), ImportReport(directory="results"), 16, 5, {})


def row(sample_id: str, tier: str, top_k: int, blocks: tuple[int, ...] | None, **values) -> dict:
    return {
        "sample_id": sample_id,
        "tier": tier,
        "top_k": top_k,
        "num_blocks": 4 if blocks is None else len(blocks),
        "active_block_indices": None if blocks is None else list(blocks),
        **values,
    }


def without(*blocks: int) -> tuple[int, ...]:
    return tuple(block for block in ALL if block not in blocks)


def published_plans() -> dict[KnobSetting, BlockPlan]:
    return {
        setting: block_plan(
            setting.insertion_position,
            setting.top_k,
            setting.num_blocks,
            importance=published_order(),
            native_top_k=(8,) * 16,
        )
        for setting in KnobSpace().settings
    }


@pytest.mark.parametrize(
    ("dropped", "positions"),
    [
        ((), [1, 2, 3, 4, 5]),
        ((4,), [1, 2, 3, 4]),  # position 5 forces block 4
        ((4, 13), [1, 2, 3, 4]),
        ((2, 4, 10, 13), [1, 2]),  # position 3 forces block 2
        ((10, 11, 13), [5]),  # position 5 drops these instead of blocks 4, 3 and 2, which it forces
        ((3, 4), []),  # no plan drops exactly these blocks
    ],
)
def test_an_outcome_applies_to_every_position_that_runs_the_same_blocks(dropped, positions):
    spread = settings_of_blocks(published_plans())
    outcome = row("easy_vqa/1", "low", 6, without(*dropped), accuracy=1.0, answer="yes", output_tokens=2)
    known = spread_outcomes(recorded([outcome]), spread)
    found = known.get("easy_vqa/1", {})
    assert [setting.insertion_position for setting in found] == positions
    for setting, answer in found.items():
        assert (setting.tier, setting.top_k, setting.num_blocks) == ("low", 6, 16 - len(dropped))
        assert (answer.answer, answer.accuracy, answer.output_tokens, answer.outcome_source) == (
            "yes",
            1.0,
            2,
            "imported",
        )
        assert answer.latency_ms is None


def test_outcomes_without_accuracy_or_blocks_are_ignored():
    spread = settings_of_blocks(published_plans())
    rows = [row("a/1", "low", 6, ALL, accuracy=None), row("a/1", "low", 6, None, accuracy=1.0)]
    assert spread_outcomes(recorded(rows), spread) == {}


@pytest.fixture
def config(tiny_model_dir, tmp_path, monkeypatch) -> PrecomputeConfig:
    """Results for two of three samples: with all blocks in both tiers, and without blocks 2 and 4 in the low tier."""
    save_importance(ImportanceScores((0.9, 0.8, 0.1, 0.7, 0.2, 0.6)), tmp_path / "scores.json")
    samples = easy_samples(3)
    full, short = tuple(range(6)), (0, 1, 3, 5)
    times = {"latency_ms": 50.0, "vision_ms": 5.0, "prefill_ms": 40.0, "decode_ms": 4.0}
    rows = []
    for sample in samples[:2]:
        rows += [
            row(sample.sample_id, tier, 4, full, accuracy=1.0, answer="full", output_tokens=2, **times)
            for tier in ("low", "high")
        ]
        rows.append(row(sample.sample_id, "low", 4, short, accuracy=0.5, answer="short", output_tokens=None, **times))
    rows.append(row("easy_vqa/elsewhere", "low", 4, full, accuracy=1.0, answer="full", output_tokens=2))
    monkeypatch.setattr(combine, "recorded_outcomes", lambda *_, **__: recorded(rows))
    return run_config(
        tiny_model_dir,
        tmp_path / "cache",
        samples=3,
        importance=tmp_path / "scores.json",
        max_new_tokens={"easy_vqa": 2},
        from_results=tmp_path / "results",
    )


def test_answers_are_imported_and_tokens_and_times_are_measured(config):
    summary = precompute(config)
    cache = open_cache(config.out)
    assert summary["execution"]["counts"]["answers_executed"] == 0
    assert cache.tokens.present_STPM.all()
    # Both positions run all blocks; position 3 forces block 2, so the short runs apply only to position 1.
    assert cache.present_SX.sum() == 2 * (2 * 2 + 1)
    sources = cache.outcome_column("outcome_source")
    assert set(sources[cache.present_SX]) == {"imported"}
    short = cache.accuracy_SX == 0.5
    assert short.sum() == 2
    assert np.isnan(cache.latency_ms_SX[short]).all()  # latency is unknown without the answer's length
    assert (cache.latency_ms_SX[cache.accuracy_SX == 1.0] > 0).all()
    assert cache.manifest.latency_mode == "blockwise"
    assert summary["results"]["samples_matched"] == 2
    assert summary["results"]["samples_without_results"] == 1
    assert summary["results"]["results_without_sample"] == 1
    assert "elsewhere" in summary["results"]["in_words"]
    assert "native top-k" in summary["results"]["in_words"]


def test_complete_runs_the_model_for_settings_without_results(config):
    complete = dataclasses.replace(config, complete=True)
    precompute(complete)
    cache = open_cache(complete.out)
    assert cache.present_SX.all()
    sources = cache.outcome_column("outcome_source")
    assert (sources == "imported").sum() == 2 * (2 * 2 + 1)
    assert (sources == "measured").sum() == 3 * 16 - 10


def test_recorded_latencies_can_be_kept(config):
    kept = dataclasses.replace(config, imported_latency=True)
    precompute(kept)
    cache = open_cache(kept.out)
    assert cache.manifest.latency_mode == "imported"
    assert set(cache.latency_ms_SX[cache.present_SX]) == {50.0}
    assert cache.outcome_column("latency_runs_ms")[cache.present_SX].tolist() == [None] * int(cache.present_SX.sum())
    with pytest.raises(KnobctlError, match="complete"):
        precompute(dataclasses.replace(kept, complete=True, out=kept.out.with_name("other")))


def test_results_that_apply_to_no_setting_are_refused(config):
    with pytest.raises(KnobctlError, match="no recorded outcome"):
        precompute(dataclasses.replace(config, space=dataclasses.replace(SMALL_SPACE, top_k=(2,))))


def test_a_run_is_not_resumed_with_different_results(config, monkeypatch):
    """The directory has the same name but different contents."""
    precompute(config)
    found = combine.recorded_outcomes(config.from_results)
    found.report.sources = [{"file": "results/a.json", "bytes": 3, "sha256": "ab", "rows": 1}]
    monkeypatch.setattr(combine, "recorded_outcomes", lambda *_, **__: found)
    with pytest.raises(KnobctlError, match="sources_sha256"):
        precompute(config)
