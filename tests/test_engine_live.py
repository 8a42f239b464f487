"""The live executor on a tiny model: which passes it runs, how often, and under what conditions."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from knobctl.controllers.budget_encoder import read_budget_encoder
from knobctl.data.cache.executor import CacheExecutor
from knobctl.data.cache.reader import Cache, open_cache
from knobctl.data.errors import CacheMismatch
from knobctl.data.protocols import LiveSystem
from knobctl.data.samples import Sample
from knobctl.precompute.execution.knob_model import KnobModel
from knobctl.precompute.run.live import LiveExecutor
from knobctl.precompute.run.live_from_cache import live_factory
from knobctl.precompute.scale.launch import precompute
from knobctl.replay.evaluation.live import run_live
from knobctl.replay.reward import RewardWeights
from knobctl.replay.tables import ReplayTables
from knobctl.tests.support.tiny_model import (
    easy_samples,
    run_config,
    tiny_knobs,
)

SAMPLES = 3


@pytest.fixture(scope="module")
def cache(tiny_model_dir: Path, tiny_importance: Path, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    config = run_config(
        tiny_model_dir,
        tmp_path_factory.mktemp("live") / "cache",
        samples=SAMPLES,
        runs=1,
        budgets=("10", "20", "40"),
        checks_per_tiling=0,
        importance=tiny_importance,
    )
    precompute(config)
    return open_cache(config.out)


class CountingModel(KnobModel):
    """Counts decoded images and token passes."""

    counts: Counter[str]

    def pixels(self, sample: Sample) -> np.ndarray:
        self.counts["pixels"] += 1
        return super().pixels(sample)

    def token_pass(self, *arguments: object) -> tuple:
        self.counts["token_pass"] += 1
        return super().token_pass(*arguments)


@pytest.fixture
def knobs(cache: Cache, tiny_model_dir: Path) -> CountingModel:
    tiny = tiny_knobs(tiny_model_dir, space=cache.space, importance=cache.manifest.importance)
    made = CountingModel(
        tiny.loaded,
        space=tiny.space,
        importance=tiny.importance,
        encoder=read_budget_encoder(cache.budget_encoder_path, cache.d_model),
        tasks=tiny.tasks,
        budgets_ms=tuple(float(ms) for ms in cache.budgets_ms),
    )
    made.counts = Counter()
    return made


class EveryTier:
    """Varies the tier and position with the budget, and reads the latency token."""

    uses_latency_token = True

    def __init__(self, name: str, shift: int) -> None:
        self.name, self.shift = name, shift
        self.threads: set[int] = set()

    def choose_image(self, requests):
        self.threads.add(torch.get_num_threads())
        choice = np.array([int(requests.budget_ms_B[0]) // 10 + self.shift])
        return choice % 2, choice // 2 % 2

    def choose_compute(self, requests, tier_B, position_B, token_BD):  # noqa: ARG002  required by the protocol
        self.threads.add(torch.get_num_threads())
        return np.array([0]), np.array([int(token_BD.astype(np.float64).sum() > 0)])


def live_runs(executor, cache: Cache, budgets_ms: tuple[float, ...], policies=None):
    table = ReplayTables.from_cache(cache, RewardWeights())
    samples = {sample.sample_id: sample for sample in easy_samples(SAMPLES)}
    policies = policies or [EveryTier("one", 0), EveryTier("other", 1)]
    system = LiveSystem(executor, samples, None)
    return run_live(system, policies, table, np.arange(SAMPLES), budgets_ms)


@pytest.mark.parametrize(
    ("budgets_ms", "passes"),
    [
        ((10.0, 20.0, 40.0), 1),  # the grid
        ((11.0, 25.0, 31.0), 1),  # all off the grid: one pass holds three budgets, as many as the grid
        ((10.0, 11.0, 20.0, 25.0), 2),  # the grid's pass and another
        ((11.0, 25.0, 31.0, 53.0), 2),
    ],
)
def test_all_requests_for_a_sample_and_tier_share_token_passes(knobs, cache, budgets_ms, passes):
    live_runs(LiveExecutor(knobs), cache, budgets_ms)
    assert knobs.counts == {"pixels": SAMPLES, "token_pass": SAMPLES * len(cache.space.tiers) * passes}


def test_cached_passes_do_not_change_tokens_or_outcomes(knobs, cache):
    """Compared with a new executor per request, which reuses no pass, and, on the grid, with the cache."""

    class Forgetful(LiveExecutor):
        def latency_token(self, *arguments):
            return LiveExecutor(knobs).latency_token(*arguments)

    for budgets_ms in ((10.0, 20.0, 40.0), (20.0, 31.0), (11.0, 25.0, 31.0)):
        kept = live_runs(LiveExecutor(knobs), cache, budgets_ms)
        for one, other in zip(kept, live_runs(Forgetful(knobs), cache, budgets_ms), strict=True):
            assert one.token_D.tobytes() == other.token_D.tobytes()
            assert (one.setting, one.outcome.answer, one.outcome.accuracy) == (
                other.setting,
                other.outcome.answer,
                other.outcome.accuracy,
            )
    replayed = live_runs(CacheExecutor(cache), cache, (10.0, 20.0, 40.0))
    for one, other in zip(live_runs(LiveExecutor(knobs), cache, (10.0, 20.0, 40.0)), replayed, strict=True):
        assert one.token_D.tobytes() == other.token_D.tobytes()


def test_passes_are_kept_for_only_one_sample(knobs):
    live, (first, second, _) = LiveExecutor(knobs), easy_samples(SAMPLES)
    for budget_ms in (10.0, 33.0, 34.0, 35.0, 10.0):  # only one pass is kept for unannounced budgets
        live.latency_token(first, "low", 1, budget_ms)
    assert knobs.counts == {"pixels": 1, "token_pass": 4}
    live.latency_token(first, "low", 3, 35.0)
    assert knobs.counts["token_pass"] == 4
    live.latency_token(second, "low", 1, 10.0)
    live.latency_token(first, "low", 1, 10.0)
    assert knobs.counts == {"pixels": 3, "token_pass": 6}
    other_question = dataclasses.replace(first, question="is there a circle?")
    assert not np.array_equal(
        live.latency_token(other_question, "low", 1, 10.0)[0], live.latency_token(first, "low", 1, 10.0)[0]
    )


def test_policies_run_on_one_thread(knobs, cache):
    policy = EveryTier("one", 0)
    torch.set_num_threads(2)
    try:
        live_runs(LiveExecutor(knobs), cache, (10.0, 20.0), [policy])
        assert policy.threads == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_a_budget_off_the_grid_gets_its_own_token(cache):
    """Its probe is one row of the same pass; the prompt, and therefore every answer, is unchanged."""
    live, samples = live_factory(cache.path, device="cpu")(cache.sample_ids[:1])
    (sample,) = samples.values()
    between, handle = live.latency_token(sample, "low", 1, 33.0)
    for budget in cache.budgets_ms:
        on_grid, _ = live.latency_token(sample, "low", 1, float(budget))
        assert not np.array_equal(between, on_grid)
    index = cache.sample_index[sample.sample_id]
    for setting in cache.space.settings:
        if setting.tier == "low" and setting.insertion_position == 1:
            outcome = live.finish(handle, setting.top_k, setting.num_blocks)
            assert outcome.accuracy == cache.accuracy_SX[index, cache.space.index(setting)]


def test_a_dtype_that_differs_from_the_cache_is_refused(cache):
    with pytest.raises(CacheMismatch, match="made in float32, but --dtype is bfloat16"):
        live_factory(cache.path, device="cpu", dtype="bfloat16")(cache.sample_ids[:1])
