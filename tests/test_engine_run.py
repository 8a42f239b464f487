"""A precompute run on a tiny random model: every row, resumed, and the live executor beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from knobctl.data.cache import CacheExecutor, open_cache, verify_cache
from knobctl.precompute.config import PrecomputeConfig
from knobctl.precompute.encoder_file import read_encoder
from knobctl.precompute.live import LiveExecutor
from knobctl.precompute.run import precompute

from .engine_world import SMALL_SPACE, easy_samples, tiny_knobs, write_tiny_model


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
