"""The bundled model: replay answers as live does, under all 375 settings."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path

import numpy as np
import pytest

from knobctl.data.cache import Cache, CacheExecutor, open_cache
from knobctl.data.errors import CacheMismatch
from knobctl.data.importer import save_importance
from knobctl.precompute.run.config import PrecomputeConfig
from knobctl.precompute.run.live_from_cache import live_factory
from knobctl.precompute.scale.launch import precompute
from knobctl.tests.support.tiny_model import published_order


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Cache:
    """Two samples of each bundled dataset under the default knob space."""
    directory: Path = tmp_path_factory.mktemp("nano")
    save_importance(published_order(), directory / "scores.json")
    config = PrecomputeConfig(
        model="nano",
        datasets=("easy_vqa", "small_print"),
        out=directory / "cache",
        samples=2,
        device="cpu",
        budgets=("20", "45", "90"),
        runs=1,
        checks_per_tiling=0,
        importance=directory / "scores.json",
    )
    precompute(config)
    return open_cache(config.out)


def test_all_375_settings_of_three_samples_answer_live_as_in_the_cache(cache):
    space = cache.space
    assert len(space.settings) == 375
    assert cache.present_SX.all()
    chosen = cache.sample_ids[:1] + cache.sample_ids[-2:]  # one of easy_vqa, two of small_print
    live, samples = live_factory(cache.path, device="cpu", runs=0)(chosen)
    replay = CacheExecutor(cache)
    budgets_ms = cycle(float(budget) for budget in cache.budgets_ms)
    for sample in samples.values():
        np.testing.assert_array_equal(live.language_feature(sample), replay.language_feature(sample))
        for tier in space.tiers:
            for position in space.insertion_positions:
                budget_ms = next(budgets_ms)
                token, handle = live.latency_token(sample, tier, position, budget_ms)
                cached, cached_handle = replay.latency_token(sample, tier, position, budget_ms)
                assert token.tobytes() == np.asarray(cached).tobytes()
                for top_k in space.top_k:
                    for num_blocks in space.num_blocks:
                        now = live.finish(handle, top_k, num_blocks)
                        then = replay.finish(cached_handle, top_k, num_blocks)
                        where = (sample.sample_id, tier, position, top_k, num_blocks)
                        assert (now.answer, now.accuracy, now.output_tokens) == (
                            then.answer,
                            then.accuracy,
                            then.output_tokens,
                        ), where


def test_a_budget_off_the_grid_has_a_token_of_its_own(cache):
    """It takes a row of the same pass; the prompt, and so every answer, is as before."""
    live, samples = live_factory(cache.path, device="cpu", runs=0)(cache.sample_ids[:1])
    (sample,) = samples.values()
    between, handle = live.latency_token(sample, "low", 2, 33.0)
    for budget in cache.budgets_ms:
        on_grid, _ = live.latency_token(sample, "low", 2, float(budget))
        assert not np.array_equal(between, on_grid)
    setting = next(s for s in cache.space.settings if s.tier == "low" and s.insertion_position == 2)
    outcome = live.finish(handle, setting.top_k, setting.num_blocks)
    index = cache.sample_index[sample.sample_id]
    assert outcome.accuracy == cache.accuracy_SX[index, cache.space.index(setting)]


def test_a_dtype_that_is_not_the_cache_s_is_refused(cache):
    with pytest.raises(CacheMismatch, match="made in float32, and --dtype asks for bfloat16"):
        live_factory(cache.path, device="cpu", dtype="bfloat16")(cache.sample_ids[:1])
