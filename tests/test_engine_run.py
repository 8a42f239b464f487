"""A precompute run on a tiny random model: every row, resumed, and the live executor beside it."""

from __future__ import annotations

import dataclasses
import errno
import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from knobctl.data.cache import CacheExecutor, Shard, merge_caches, open_cache, verify_cache
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
from knobctl.precompute.models.encoder_file import read_encoder
from knobctl.precompute.run.config import PrecomputeConfig
from knobctl.precompute.run.forecast import forecast
from knobctl.precompute.run.importance import importance_key, measure_importance, run_importance
from knobctl.precompute.run.inputs import load_inputs
from knobctl.precompute.run.journal import Journal
from knobctl.precompute.run.live import LiveExecutor
from knobctl.precompute.run.sample import SampleRunner
from knobctl.precompute.scale.launch import Interrupted, precompute
from knobctl.tests.support.engine_world import SMALL_SPACE, assert_same_rows, easy_samples, tiny_knobs, write_tiny_model


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny", 6, native_top_k=4)


@pytest.fixture(scope="module")
def config(model_dir, tmp_path_factory) -> PrecomputeConfig:
    return PrecomputeConfig(
        model=str(model_dir),
        datasets=("easy_vqa",),
        out=tmp_path_factory.mktemp("caches") / "cache",
        samples=12,
        device="cpu",
        space=SMALL_SPACE,
        runs=2,
        importance_samples=5,
        max_new_tokens={"easy_vqa": 3},
        part_samples=3,
        threads=1,
    )


@pytest.fixture(scope="module")
def summary(config) -> dict:
    return precompute(config)


@pytest.fixture(scope="module")
def cache(summary):
    return open_cache(Path(summary["out"]))


def test_every_setting_and_every_token_is_there(cache, summary):
    assert summary["samples"] == 12
    assert summary["settings"] == 16
    assert cache.present_SX.all()
    assert np.isfinite(cache.latency_ms_SX).all()
    assert (cache.latency_ms_SX > 0).all()
    assert cache.tokens.present_STPM.all()
    assert verify_cache(cache.path) == []
    assert cache.manifest.runs == 2
    assert cache.manifest.latency_check["settings"] == 24  # one of each of 2 tilings of 12 samples
    assert set(cache.manifest.latency_check["stages"]) == {"vision", "prefill", "decode", "total"}


def test_work_is_counted(cache, summary):
    counts = summary["execution"]["counts"]
    assert counts["samples"] == 12
    assert counts["vision_runs_asked"] == 12 * 16
    assert counts["vision_runs_executed"] == 12 * 2
    assert counts["block_runs_asked"] == 12 * sum(s.num_blocks for s in cache.space.settings)
    assert 0 < counts["block_runs_executed"] < counts["block_runs_asked"] / 2
    assert counts["answers_executed"] < counts["answers_asked"]  # settings that give one plan are run once
    assert summary["execution"]["seconds"]["sweep"] > 0


def test_replay_answers_as_the_live_model_does(cache, model_dir):
    """All settings and all budgets: answers, accuracies, and tokens to the last bit."""
    live = LiveExecutor(tiny_knobs(model_dir, space=cache.space, importance=cache.manifest.importance))
    live.knobs.budgets_ms = tuple(float(ms) for ms in cache.budgets_ms)
    live.knobs.encoder = read_encoder(cache.budget_encoder_path, cache.d_model)
    replay = CacheExecutor(cache)
    by_id = {sample.sample_id: sample for sample in easy_samples(12)}
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


def same_run(config: PrecomputeConfig, cache, out: Path, **changes) -> PrecomputeConfig:
    """The config with the cache's own budgets and another directory, so that only times may differ."""
    budgets = tuple(str(float(budget)) for budget in cache.budgets_ms)
    return dataclasses.replace(config, out=out, budgets=budgets, **changes)


def test_a_stopped_run_goes_on_where_it_was(config, cache, tmp_path, monkeypatch):
    """SIGINT finishes the part in hand; the same command makes the rest; the rows are those of an undisturbed run."""
    again = same_run(config, cache, tmp_path / "again")
    run_part, parts = SampleRunner.run, []
    handler = signal.getsignal(signal.SIGINT)  # a shell's background jobs start with it ignored

    def interrupted(runner, sample, *args, **options):
        parts.append(sample.sample_id)
        if len(parts) == 4:  # the first sample of the second part
            signal.raise_signal(signal.SIGINT)
        return run_part(runner, sample, *args, **options)

    monkeypatch.setattr(SampleRunner, "run", interrupted)
    with pytest.raises(Interrupted, match="6 of 12 samples"):
        precompute(again)
    monkeypatch.setattr(SampleRunner, "run", run_part)
    assert signal.getsignal(signal.SIGINT) is handler
    summary = precompute(again)
    assert summary["execution"]["counts"]["samples"] == 12
    assert_same_rows(again.out, cache.path)
    assert not (again.out / "progress.jsonl").exists()


def test_a_disk_that_fills_up_at_the_journal_is_said_in_words(config, cache, tmp_path, monkeypatch):
    again = same_run(config, cache, tmp_path / "again")
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
        with pytest.raises(CacheError, match="disk is full"):
            precompute(again)
    precompute(again)
    assert_same_rows(again.out, cache.path)


def test_a_finished_run_is_not_made_again(config, cache, monkeypatch):
    monkeypatch.setattr(SampleRunner, "run", lambda *_: pytest.fail("nothing is left to run"))
    assert precompute(config)["samples"] == 12
    assert open_cache(cache.path).fingerprint == cache.fingerprint


@pytest.mark.parametrize(
    ("change", "named"),
    [({"seed": 1}, "seed"), ({"runs": 3}, "runs"), ({"latency_mode": "end_to_end"}, "latency_mode")],
)
def test_another_run_in_the_same_directory_is_refused(config, summary, change, named):
    assert summary["out"] == str(config.out)
    with pytest.raises(CacheMismatch, match=named):
        precompute(dataclasses.replace(config, **change))


def test_shards_merge_into_the_same_rows(config, cache, tmp_path):
    """The second shard takes budgets and scores from the first one's directory, and is refused without it."""
    first = same_run(config, cache, tmp_path / "0", shard=Shard(0, 2))
    precompute(first)
    with pytest.raises(KnobctlError, match="--like"):
        dataclasses.replace(first, shard=Shard(1, 2))
    precompute(dataclasses.replace(first, shard=Shard(1, 2), like=first.out, out=tmp_path / "1", part_samples=16))
    merge_caches([tmp_path / "0", tmp_path / "1"], tmp_path / "merged")
    assert verify_cache(tmp_path / "merged") == []
    assert_same_rows(tmp_path / "merged", cache.path)
    merged, whole = open_cache(tmp_path / "merged").manifest.datasets, cache.manifest.datasets
    assert merged == whole  # rows of each split add up; seed and token limit are no counts


def test_shards_may_find_their_images_in_different_folders(config, cache, tmp_path):
    first = same_run(config, cache, tmp_path / "0", shard=Shard(0, 2))
    precompute(first)
    precompute(dataclasses.replace(first, shard=Shard(1, 2), like=first.out, out=tmp_path / "1"))
    record = json.loads((tmp_path / "1" / "cache.json").read_text())
    record["datasets"]["easy_vqa"]["source"] = "/elsewhere/easy_vqa.parquet"
    (tmp_path / "1" / "cache.json").write_text(json.dumps(record))
    merge_caches([tmp_path / "0", tmp_path / "1"], tmp_path / "merged")
    assert open_cache(tmp_path / "merged").manifest.datasets["easy_vqa"]["source"] is None


def test_a_space_whose_fewest_blocks_lie_below_the_position_runs(config, tmp_path):
    space = KnobSpace(tiers=("low", "high"), insertion_positions=(2,), top_k=(2, 4), num_blocks=(1, 6))
    out = tmp_path / "cache"
    precompute(dataclasses.replace(config, space=space, out=out))
    assert {setting.num_blocks for setting in open_cache(out).space.settings} == {6}


def test_end_to_end_mode_times_every_plan(config, cache, tmp_path):
    precompute(same_run(config, cache, tmp_path / "whole", latency_mode="end_to_end"))
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
        ({"shard": Shard(0, 13)}, KnobctlError, "12 samples cannot be divided among 13"),
    ],
)
def test_what_the_user_can_mend_is_said_and_nothing_is_written(config, tmp_path, change, error, says):
    with pytest.raises(error, match=says):
        precompute(dataclasses.replace(config, out=tmp_path / "out", **change))
    assert not (tmp_path / "out").exists()


def test_a_missing_gpu_is_named_with_the_way_out(config, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(KnobctlError, match="--device cpu"):
        precompute(dataclasses.replace(config, out=tmp_path / "out", device="cuda"))


def test_importance_of_another_model_is_refused(config, tmp_path):
    save_importance(ImportanceScores((0.1,) * 16), tmp_path / "scores.json")
    with pytest.raises(ImportanceError, match="16"):
        precompute(dataclasses.replace(config, out=tmp_path / "out", importance=tmp_path / "scores.json"))


def test_measured_importance_is_kept_beside_the_model(config, summary, model_dir):
    kept = list(model_dir.glob("knobctl-importance-*.json"))
    assert kept
    assert summary["importance"]["runs"] == 5
    assert load_importance(kept[0]).n_blocks == 6
    assert (
        run_importance(config, model_dir / "scores.json")["scores"]
        == load_importance(model_dir / "scores.json").to_dict()["scores"]
    )


def test_kept_importance_is_of_the_same_token_limit(config):
    inputs = load_inputs(config)
    longer = load_inputs(dataclasses.replace(config, max_new_tokens={"easy_vqa": 4}))
    drawn = inputs.samples[:5]
    assert importance_key(config, inputs, drawn) == importance_key(config, load_inputs(config), drawn)
    assert importance_key(config, longer, drawn) != importance_key(config, inputs, drawn)


def test_importance_is_the_accuracy_lost_without_a_block(model_dir):
    """By hand: every training answer of the model without one block, from the plain model."""
    knobs = tiny_knobs(model_dir, space=SMALL_SPACE)
    samples = list(easy_samples(4))
    answers = {}
    for sample in samples:
        _, state = knobs.prepare_tier(sample, "high")
        for skipped in (None, 2):
            plan = tuple(0 if block == skipped else 4 for block in range(6))
            answers[sample.sample_id, skipped] = knobs.text(knobs.answer(state, plan, knobs.task(sample)))
    # Half of the samples want what the whole model says, half what it says without block 2.
    wanted = [
        dataclasses.replace(sample, answers=(answers[sample.sample_id, None if number % 2 else 2],))
        for number, sample in enumerate(samples)
    ]
    scores = measure_importance(knobs, wanted, runs=2)
    # An empty answer never counts as right, so a sample that wants one loses nothing.
    changed = [answers[s.sample_id, None] != answers[s.sample_id, 2] and s.answers != ("",) for s in wanted]
    assert any(changed)
    gain, loss = -np.mean(changed[0::2]), np.mean(changed[1::2])
    assert scores.scores[2] == pytest.approx((gain + loss) / 2)
    assert scores.std[2] == pytest.approx(abs(gain - loss) / 2**0.5)


def test_the_forecast_names_phases_disk_and_memory(config, tmp_path):
    report = forecast(dataclasses.replace(config, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    assert {"token_pass", "sweep", "timing", "pilot"} <= set(report["hours"])
    assert report["total_hours"] == pytest.approx(sum(report["hours"].values()))
    assert report["disk_bytes"] > 12 * 2 * 2 * 16 * 16 * 2  # the tokens alone
    assert report["peak_memory_bytes"]["process"] > 1 << 20
    assert report["standard_error"]["easy_vqa"]["all"] == pytest.approx(0.5 / 12**0.5)


def test_samples_are_counted_for_each_dataset_or_by_name(config):
    def drawn(samples) -> dict[str, int]:
        inputs = load_inputs(dataclasses.replace(config, datasets=("easy_vqa", "small_print"), samples=samples))
        return {one.name: len(one.samples) for one in inputs.sets}

    assert drawn(4) == {"easy_vqa": 4, "small_print": 4}
    assert drawn({"easy_vqa": 3, "small_print": 5}) == {"easy_vqa": 3, "small_print": 5}
    assert config.samples_of("easy_vqa") == 12
    assert dataclasses.replace(config, samples={"easy_vqa": 3}).samples_of("small_print") is None
