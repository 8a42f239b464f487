"""docs/models.md: its own model runs as written, and its example is short."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import polars as pl
import pytest
import torch

from knobctl.data.cache.reader import open_cache
from knobctl.precompute.execution.answer_sweep import sweep_answers
from knobctl.precompute.execution.batch_limit import BatchLimit
from knobctl.precompute.execution.plan_tree import PlanTree
from knobctl.precompute.models import loading
from knobctl.precompute.run.config import PrecomputeConfig
from knobctl.precompute.run.live_from_cache import live_factory
from knobctl.precompute.scale.launch import precompute

PAGE = (Path(__file__).parent.parent / "docs" / "models.md").read_text()
EXAMPLE = PAGE.partition("```python\n")[2].partition("```")[0]
MAX_LINES = 80  # without blank ones


@pytest.fixture
def model_dir(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(loading, "FAMILIES", dict(loading.FAMILIES))
    module = ModuleType("own_model")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(EXAMPLE, "docs/models.md", "exec"), module.__dict__)
    (tmp_path / "mean").mkdir()
    (tmp_path / "mean" / "config.json").write_text(json.dumps({"model_type": "mean"}))
    return tmp_path / "mean"


def test_the_example_is_short():
    assert 40 < sum(bool(line.strip()) for line in EXAMPLE.splitlines()) <= MAX_LINES


def test_the_example_runs_under_every_setting_and_live(model_dir, tmp_path):
    space = loading.load_model(str(model_dir), device="cpu").model.default_knobs()
    config = PrecomputeConfig(
        model=str(model_dir),
        datasets=("easy_vqa",),
        out=tmp_path / "cache",
        samples=12,
        device="cpu",
        space=space,
        budgets=("10", "20"),
        runs=1,
        importance_samples=5,
        max_new_tokens={"easy_vqa": 4},
    )
    precompute(config)
    cache = open_cache(config.out)
    outcomes = pl.read_parquet(config.out / "outcomes" / "*.parquet")
    assert outcomes.height == 12 * len(space.settings)
    assert outcomes["answer"].n_unique() > 4
    executor, samples = live_factory(config.out, device="cpu")(cache.sample_ids[:4])
    for sample in samples.values():
        own = outcomes.filter(pl.col("sample_id") == sample.sample_id)
        for row in own.iter_rows(named=True):
            _, handle = executor.latency_token(sample, row["tier"], row["insertion_position"], 10.0)
            assert executor.finish(handle, row["top_k"], row["num_blocks"]).answer == row["answer"]
        knobs = executor.knobs
        _, state = knobs.prepare_tier(sample, space.tiers[0])
        plans = list(knobs.plans.values())
        tree = PlanTree.of(plans, native=knobs.native, num_shared=state.num_shared)
        swept = sweep_answers(knobs.model, state, tree, BatchLimit(10_000), max_new_tokens=4)
        for plan, one in zip(tree.plans, swept, strict=True):
            assert one.is_near_tie or one.token_ids == knobs.answer(state, plan, knobs.task(sample))
        with torch.inference_mode():  # the prompt is the same with and without probes
            hidden = state.hidden_1SD[0]
            moved = knobs.model.run_block(0, hidden, top_k=4, positions=0)
            torch.testing.assert_close(moved, state.hidden_1SD[1])
