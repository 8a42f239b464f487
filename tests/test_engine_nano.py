"""The bundled model: replay gives the same answers as live execution under all 375 settings."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path

import numpy as np
import pytest

from knobctl.data.cache.executor import CacheExecutor
from knobctl.data.cache.reader import Cache, open_cache
from knobctl.data.importer import save_importance
from knobctl.precompute.run.config import PrecomputeConfig
from knobctl.precompute.run.live_from_cache import live_factory
from knobctl.precompute.scale.launch import precompute
from knobctl.tests.support.tiny_model import published_order


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Cache:
    """One sample of easy_vqa and two of small_print under the default knob space."""
    directory: Path = tmp_path_factory.mktemp("nano")
    save_importance(published_order(), directory / "scores.json")
    config = PrecomputeConfig(
        model="nano",
        datasets=("easy_vqa", "small_print"),
        out=directory / "cache",
        samples={"easy_vqa": 1, "small_print": 2},
        device="cpu",
        budgets=("20", "45", "90"),
        runs=1,
        checks_per_tiling=0,
        importance=directory / "scores.json",
    )
    precompute(config)
    return open_cache(config.out)


@pytest.mark.slow
def test_all_375_settings_of_three_samples_answer_live_as_in_the_cache(cache):
    space = cache.space
    assert len(space.settings) == 375
    assert cache.present_SX.all()
    live, samples = live_factory(cache.path, device="cpu")(cache.sample_ids)
    assert len(samples) == 3
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
