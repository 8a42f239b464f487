"""A family's tiny checkpoint through every step: importance, dry run, precompute, inspect, rescore, train, validate."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from click.testing import CliRunner

from knobctl.cli import main
from knobctl.commands.live import live_system
from knobctl.controllers.budget_encoder import BudgetEncoder
from knobctl.data.cache.reader import open_cache
from knobctl.data.cache.verify import verify_cache
from knobctl.data.datasets.sample_set import load_samples
from knobctl.data.knobs import KnobSpace
from knobctl.precompute.execution.knob_model import KnobModel, Task
from knobctl.precompute.models.loading import load_model
from knobctl.precompute.run.config import PrecomputeConfig
from knobctl.precompute.run.forecast import forecast
from knobctl.precompute.scale.launch import precompute
from knobctl.replay.evaluation.validate import validate_controllers
from knobctl.replay.recipes import recipe
from knobctl.replay.training.train import train_controllers
from knobctl.tests.support.dataset_files import write_json_lines
from knobctl.tests.support.family_models import small_space
from knobctl.tests.support.tiny_families import write_family

SAMPLES, TOKENS = 24, 3


@pytest.fixture(scope="module", params=["qwen3_vl_moe", pytest.param("gemma4", marks=pytest.mark.slow)])
def model_dir(request, tmp_path_factory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield write_family(request.param, folder / "model")


@pytest.fixture(scope="module")
def dataset(model_dir, space) -> Path:
    """Images of easy_vqa with the answers of the whole model, so that random weights are sometimes right."""
    task = Task("exact_match", TOKENS, None)
    loaded = load_model(str(model_dir), device="cpu")
    encoder = BudgetEncoder.from_seed(loaded.model.geometry.d_model, 0)
    knobs = KnobModel(loaded, space=space, encoder=encoder, tasks={"easy_vqa": task})
    rows = []
    for sample in load_samples("easy_vqa", limit=SAMPLES, seed=1).samples:
        _, state = knobs.prepare_tier(sample, space.tiers[-1])
        answer = knobs.text(knobs.answer(state, knobs.native, task))
        name = f"{len(rows)}.png"
        (model_dir.parent / name).write_bytes(sample.image.read_bytes())
        rows.append({"image": name, "question": sample.question, "answers": [answer or "nothing"], "question_id": name})
    return write_json_lines(model_dir.parent / "own.jsonl", rows)


def config_of(model_dir: Path, dataset: Path, space: KnobSpace, **changes: Any) -> PrecomputeConfig:
    values: dict[str, Any] = {
        "model": str(model_dir),
        "datasets": (f"own={dataset}",),
        "out": model_dir.parent / "runs" / "cache",
        "samples": SAMPLES,
        "device": "cpu",
        "space": space,
        "runs": 1,
        "importance_samples": 5,
        "max_new_tokens": {"own": TOKENS},
        "prompt": ("",),  # as the answers of `dataset` were made
    }
    return PrecomputeConfig(**{**values, **changes})


@pytest.fixture(scope="module")
def space(model_dir) -> KnobSpace:
    model = load_model(str(model_dir), device="cpu").model
    return small_space(model.default_knobs(), model.geometry.n_blocks)


@pytest.fixture(scope="module")
def cache_dir(model_dir, dataset, space) -> Path:
    """A cache with measured importance scores and the budget grid of a pilot."""
    config = config_of(model_dir, dataset, space)
    summary = precompute(config)
    assert summary["samples"] == SAMPLES
    assert summary["importance"]["runs"] == 5
    return config.out


def test_a_cache_of_the_family_is_complete_and_records_it(cache_dir, space):
    assert verify_cache(cache_dir) == []
    cache = open_cache(cache_dir)
    manifest = json.loads((cache_dir / "cache.json").read_text())
    assert manifest["model"]["native_top_k"] == 4
    assert manifest["model"]["n_blocks"] == 5
    assert manifest["knobs"]["tier_unit"] == "vision_tokens"
    assert cache.space == space
    outcomes = pl.read_parquet(cache_dir / "outcomes" / "*.parquet")
    assert outcomes.height == SAMPLES * len(space.settings)
    assert outcomes["latency_ms"].null_count() == 0
    assert outcomes["answer"].n_unique() > 3
    assert 0 < outcomes["accuracy"].mean() < 1
    assert outcomes.group_by("tier").agg(pl.col("vision_tokens").mean())["vision_tokens"].n_unique() == 2


def test_a_dry_run_forecasts(model_dir, dataset, space):
    found = forecast(config_of(model_dir, dataset, space, out=model_dir.parent / "nothing"))
    assert found["total_hours"] > 0
    assert not (model_dir.parent / "nothing").exists()


def test_replay_agrees_with_the_running_model(cache_dir, tmp_path):
    training = recipe("tuned", seeds=(0,), warm_start_steps=20, min_steps=20, epochs=1)
    train_controllers(cache_dir, tmp_path / "controllers", training)
    live = live_system(tmp_path / "controllers", cache_dir, device="cpu")
    report = validate_controllers(tmp_path / "controllers", cache_dir, live=live).to_dict()
    agreement = report["live"]["agreement"]
    assert agreement["disagreements"] == []
    assert agreement["requests"] == 3 * agreement["timed_compared"] > 0
    for commands in (["inspect", str(cache_dir), "--verify"], ["rescore", str(cache_dir), "--metric", "vqa_simple"]):
        out = ["--out", str(tmp_path / "rescored")] if commands[0] == "rescore" else []
        result = CliRunner().invoke(main, [*commands, *out, "--json"])
        assert result.exit_code == 0, result.output
