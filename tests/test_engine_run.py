"""A precompute run of a tiny random model: its rows, resuming, shards, refusals, and equality with live execution."""

from __future__ import annotations

import dataclasses
import errno
import json
import signal
from typing import Any

import numpy as np
import pytest
import torch

from knobctl.controllers.budget_encoder import read_budget_encoder
from knobctl.data.cache.executor import CacheExecutor
from knobctl.data.cache.merge import merge_caches
from knobctl.data.cache.reader import Cache, open_cache
from knobctl.data.cache.run_record import Shard
from knobctl.data.cache.verify import verify_cache
from knobctl.data.errors import (
    CacheError,
    CacheMismatch,
    CheckpointError,
    DatasetError,
    ImportanceError,
    KnobctlError,
    UnknownSetting,
)
from knobctl.data.importer import load_importance, save_importance
from knobctl.data.knobs import KnobSpace
from knobctl.data.plans import ImportanceScores
from knobctl.precompute.run.config import PrecomputeConfig
from knobctl.precompute.run.forecast import forecast
from knobctl.precompute.run.importance import importance_key, measure_importance, run_importance
from knobctl.precompute.run.inputs import load_inputs
from knobctl.precompute.run.journal import Journal
from knobctl.precompute.run.live import LiveExecutor
from knobctl.precompute.run.sample import SampleRunner
from knobctl.precompute.scale.launch import Interrupted, precompute
from knobctl.tests.support.tiny_model import SMALL_SPACE, assert_same_rows, easy_samples, tiny_knobs


@pytest.fixture(scope="module")
def config(tiny_run) -> PrecomputeConfig:
    return tiny_run


@pytest.fixture(scope="module")
def cache(tiny_cache) -> Cache:
    return tiny_cache


@pytest.fixture(scope="module")
def summary(tiny_run) -> dict[str, Any]:
    """The summary that precompute prints after a finished run."""
    return precompute(tiny_run)


def test_every_setting_and_every_token_has_a_row(cache, summary):
    assert summary["samples"] == 11
    assert summary["settings"] == 16
    assert cache.present_SX.all()
    assert np.isfinite(cache.latency_ms_SX).all()
    assert (cache.latency_ms_SX > 0).all()
    assert cache.tokens.present_STPM.all()
    assert verify_cache(cache.path) == []
    assert cache.manifest.runs == 2
    assert cache.manifest.latency_check["settings"] == 22  # one for each of 2 tilings of 11 samples
    assert set(cache.manifest.latency_check["stages"]) == {"vision", "prefill", "decode", "total"}


def test_the_summary_counts_work_requested_and_executed(cache, summary):
    counts = summary["execution"]["counts"]
    assert counts["samples"] == 11
    assert counts["vision_runs_asked"] == 11 * 16
    assert counts["vision_runs_executed"] == 11 * 2
    assert counts["block_runs_asked"] == 11 * sum(s.num_blocks for s in cache.space.settings)
    assert 0 < counts["block_runs_executed"] < counts["block_runs_asked"] / 2
    assert counts["answers_executed"] < counts["answers_asked"]  # settings with the same plan share one run
    assert summary["execution"]["seconds"]["sweep"] > 0


def test_replay_matches_live_execution(cache, tiny_model_dir):
    """Answers and accuracies are equal, and tokens bit-equal, under all settings and budgets."""
    live = LiveExecutor(tiny_knobs(tiny_model_dir, space=cache.space, importance=cache.manifest.importance))
    live.knobs.budgets_ms = tuple(float(ms) for ms in cache.budgets_ms)
    live.knobs.encoder = read_budget_encoder(cache.budget_encoder_path, cache.d_model)
    replay = CacheExecutor(cache)
    by_id = {sample.sample_id: sample for sample in easy_samples(11)}
    for sample_id in cache.sample_ids[:3]:
        sample = by_id[sample_id]
        np.testing.assert_array_equal(live.language_feature(sample), replay.language_feature(sample))
        for tier in cache.space.tiers:
            for position in cache.space.insertion_positions:
                for budget_ms in cache.budgets_ms:
                    token, handle = live.latency_token(sample, tier, position, float(budget_ms))
                    cached, cached_handle = replay.latency_token(sample, tier, position, float(budget_ms))
                    assert token.tobytes() == np.asarray(cached).tobytes()
                for top_k in cache.space.top_k:
                    for num_blocks in cache.space.num_blocks:
                        now = live.finish(handle, top_k, num_blocks)
                        then = replay.finish(cached_handle, top_k, num_blocks)
                        assert (now.answer, now.accuracy) == (then.answer, then.accuracy)
                        assert now.output_tokens == then.output_tokens


def test_an_interrupted_run_resumes_after_its_last_part(config, cache, tmp_path, monkeypatch):
    """On SIGINT the run stops after the current part; rerun, it completes with the rows of an uninterrupted run."""
    again = dataclasses.replace(config, out=tmp_path / "again")
    run_sample, started = SampleRunner.run, []
    handler = signal.getsignal(signal.SIGINT)  # a shell's background jobs ignore SIGINT

    def interrupted(runner, sample, *args, **options):
        started.append(sample.sample_id)
        if len(started) == 4:  # the first sample of the second part
            signal.raise_signal(signal.SIGINT)
        return run_sample(runner, sample, *args, **options)

    monkeypatch.setattr(SampleRunner, "run", interrupted)
    with pytest.raises(Interrupted, match="6 of 11 samples"):
        precompute(again)
    monkeypatch.setattr(SampleRunner, "run", run_sample)
    assert signal.getsignal(signal.SIGINT) is handler
    summary = precompute(again)
    assert summary["execution"]["counts"]["samples"] == 11
    assert_same_rows(again.out, cache.path)
    assert not (again.out / "progress.jsonl").exists()


def test_a_full_disk_while_writing_the_journal_is_reported(config, cache, tmp_path, monkeypatch):
    again = dataclasses.replace(config, out=tmp_path / "again")
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
        with pytest.raises(CacheError, match="disk is full"):
            precompute(again)
    precompute(again)
    assert_same_rows(again.out, cache.path)


def test_a_finished_run_is_not_repeated(config, cache, monkeypatch):
    monkeypatch.setattr(SampleRunner, "run", lambda *_: pytest.fail("no sample is left to run"))
    assert precompute(config)["samples"] == 11
    assert open_cache(cache.path).fingerprint == cache.fingerprint


@pytest.mark.parametrize(
    ("change", "named"),
    [({"seed": 1}, "seed"), ({"runs": 3}, "runs"), ({"latency_mode": "end_to_end"}, "latency_mode")],
)
def test_a_different_run_in_the_same_directory_is_refused(config, summary, change, named):
    assert summary["out"] == str(config.out)
    with pytest.raises(CacheMismatch, match=named):
        precompute(dataclasses.replace(config, **change))


def test_merged_shards_equal_an_unsharded_run(config, cache, tmp_path):
    """The second shard reads budgets and scores from the first shard's directory and is refused without it."""
    first = dataclasses.replace(config, out=tmp_path / "0", shard=Shard(0, 2))
    precompute(first)
    with pytest.raises(KnobctlError, match="--like"):
        dataclasses.replace(first, shard=Shard(1, 2))
    precompute(dataclasses.replace(first, shard=Shard(1, 2), like=first.out, out=tmp_path / "1", part_samples=16))
    merge_caches([tmp_path / "0", tmp_path / "1"], tmp_path / "merged")
    assert verify_cache(tmp_path / "merged") == []
    assert_same_rows(tmp_path / "merged", cache.path)
    merged, whole = open_cache(tmp_path / "merged").manifest.datasets, cache.manifest.datasets
    assert merged == whole  # row counts per split are summed; seed and token limit are not


def test_shards_may_read_images_from_different_folders(config, tmp_path):
    first = dataclasses.replace(config, out=tmp_path / "0", shard=Shard(0, 2))
    precompute(first)
    precompute(dataclasses.replace(first, shard=Shard(1, 2), like=first.out, out=tmp_path / "1"))
    record = json.loads((tmp_path / "1" / "cache.json").read_text())
    record["datasets"]["easy_vqa"]["source"] = "/elsewhere/easy_vqa.parquet"
    (tmp_path / "1" / "cache.json").write_text(json.dumps(record))
    merge_caches([tmp_path / "0", tmp_path / "1"], tmp_path / "merged")
    assert open_cache(tmp_path / "merged").manifest.datasets["easy_vqa"]["source"] is None


def test_settings_with_fewer_blocks_than_the_position_are_left_out(config, tmp_path):
    space = KnobSpace(tiers=("low", "high"), insertion_positions=(2,), top_k=(2, 4), num_blocks=(1, 6))
    out = tmp_path / "cache"
    precompute(dataclasses.replace(config, space=space, out=out, budgets=()))
    cache = open_cache(out)
    assert {setting.num_blocks for setting in cache.space.settings} == {6}
    assert all(budget_ms == round(budget_ms) for budget_ms in cache.budgets_ms)  # the pilot's grid: none was given


def test_end_to_end_mode_times_every_plan(config, cache, tmp_path):
    precompute(dataclasses.replace(config, out=tmp_path / "whole", latency_mode="end_to_end"))
    whole = open_cache(tmp_path / "whole")
    assert whole.manifest.latency_mode == "end_to_end"
    assert whole.manifest.latency_check is None
    assert (whole.latency_ms_SX > 0).all()
    np.testing.assert_array_equal(whole.accuracy_SX, cache.accuracy_SX)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"model": "nowhere"}, CheckpointError, "nowhere"),
        ({"device": "abacus"}, KnobctlError, "abacus"),
        ({"dtype": "float8"}, KnobctlError, "float8"),
        ({"datasets": ("nonsense",), "max_new_tokens": {}}, DatasetError, "nonsense"),
        ({"datasets": ("easy_vqa", "easy_vqa=x")}, KnobctlError, "twice"),
        ({"space": KnobSpace()}, UnknownSetting, "6 blocks"),
        ({"samples": 4}, ImportanceError, "training samples"),
        ({"runs": 0}, KnobctlError, "runs"),
        ({"budgets": ("fast",)}, KnobctlError, "fast"),
        ({"metrics": {"okvqa": "exact_match"}}, KnobctlError, "okvqa"),
        ({"imported_latency": True}, KnobctlError, "--from-results"),
        ({"complete": True}, KnobctlError, "--from-results"),
        ({"shard": Shard(0, 12)}, KnobctlError, "11 samples cannot be divided among 12"),
    ],
)
def test_user_errors_are_reported_before_anything_is_written(config, tmp_path, change, error, says):
    with pytest.raises(error, match=says):
        precompute(dataclasses.replace(config, out=tmp_path / "out", **change))
    assert not (tmp_path / "out").exists()


def test_the_missing_gpu_error_suggests_device_cpu(config, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(KnobctlError, match="--device cpu"):
        precompute(dataclasses.replace(config, out=tmp_path / "out", device="cuda"))


def test_importance_of_another_model_is_refused(config, tmp_path):
    save_importance(ImportanceScores((0.1,) * 16), tmp_path / "scores.json")
    with pytest.raises(ImportanceError, match="16"):
        precompute(dataclasses.replace(config, out=tmp_path / "out", importance=tmp_path / "scores.json"))


def test_measured_importance_is_saved_next_to_the_model(config, summary, tiny_model_dir, tmp_path):
    kept = list(tiny_model_dir.glob("knobctl-importance-*.json"))
    assert kept
    assert summary["importance"]["runs"] == 5
    assert load_importance(kept[0]).n_blocks == 6
    assert (
        run_importance(config, tmp_path / "scores.json")["scores"]
        == load_importance(tmp_path / "scores.json").to_dict()["scores"]
    )


def test_saved_importance_is_reused_only_with_the_same_token_limit(config):
    inputs = load_inputs(config)
    longer = load_inputs(dataclasses.replace(config, max_new_tokens={"easy_vqa": 4}))
    drawn = inputs.samples[:5]
    assert importance_key(inputs, drawn) == importance_key(load_inputs(config), drawn)
    assert importance_key(longer, drawn) != importance_key(inputs, drawn)


def test_importance_is_the_accuracy_lost_by_skipping_a_block(tiny_model_dir):
    """The expected values are computed from the model's answers with all blocks and with one block skipped."""
    knobs = tiny_knobs(tiny_model_dir, space=SMALL_SPACE)
    samples = list(easy_samples(4))
    answers = {}
    for sample in samples:
        _, state = knobs.prepare_tier(sample, "high")
        for skipped in (None, 2):
            plan = tuple(0 if block == skipped else 4 for block in range(6))
            answers[sample.sample_id, skipped] = knobs.text(knobs.answer(state, plan, knobs.task(sample)))
    # For half of the samples the reference is the full model's answer; for the others, the answer without block 2.
    wanted = [
        dataclasses.replace(sample, answers=(answers[sample.sample_id, None if number % 2 else 2],))
        for number, sample in enumerate(samples)
    ]
    scores = measure_importance(knobs, wanted, runs=2)
    # An empty answer never counts as correct, so a sample with an empty reference loses no accuracy.
    changed = [answers[s.sample_id, None] != answers[s.sample_id, 2] and s.answers != ("",) for s in wanted]
    assert any(changed)
    gain, loss = -np.mean(changed[0::2]), np.mean(changed[1::2])
    assert scores.scores[2] == pytest.approx((gain + loss) / 2)
    assert scores.std[2] == pytest.approx(abs(gain - loss) / 2**0.5)


def test_the_forecast_reports_hours_per_phase_disk_size_and_memory(config, tmp_path):
    report = forecast(dataclasses.replace(config, out=tmp_path / "out", budgets=()))
    assert not (tmp_path / "out").exists()
    assert {"token_pass", "sweep", "timing", "pilot"} <= set(report["hours"])
    assert report["total_hours"] == pytest.approx(sum(report["hours"].values()))
    assert report["disk_bytes"] > 11 * 2 * 2 * 16 * 16 * 2  # size of the tokens alone
    assert report["peak_memory_bytes"]["process"] > 1 << 20
    assert report["standard_error"]["easy_vqa"]["all"] == pytest.approx(0.5 / 11**0.5)


def test_the_sample_count_can_be_set_for_every_dataset_or_by_name(config):
    def drawn(samples) -> dict[str, int]:
        inputs = load_inputs(dataclasses.replace(config, datasets=("easy_vqa", "small_print"), samples=samples))
        return {one.name: len(one.samples) for one in inputs.sets}

    assert drawn(4) == {"easy_vqa": 4, "small_print": 4}
    assert drawn({"easy_vqa": 3, "small_print": 5}) == {"easy_vqa": 3, "small_print": 5}
    assert config.samples_of("easy_vqa") == 11
    assert dataclasses.replace(config, samples={"easy_vqa": 3}).samples_of("small_print") is None
