"""A tiny random model with a tokenizer, and runs of it, for the tests of precompute and live."""

from __future__ import annotations

import os
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import polars as pl
import torch

from knobctl.controllers.budget_encoder import BudgetEncoder
from knobctl.data.datasets.sample_set import load_samples
from knobctl.data.errors import KnobctlError
from knobctl.data.knobs import KnobSpace
from knobctl.data.plans import ImportanceScores
from knobctl.data.samples import Sample
from knobctl.precompute.execution.knob_model import KnobModel, Task
from knobctl.precompute.models.loading import load_model
from knobctl.precompute.models.molmoe.checkpoint import save_molmoe
from knobctl.precompute.models.molmoe.config import MolmoeConfig, VisionConfig
from knobctl.precompute.models.molmoe.model import Molmoe
from knobctl.precompute.run.config import PrecomputeConfig
from knobctl.precompute.run.sample import SampleRunner
from knobctl.precompute.run.shard import Part
from knobctl.precompute.scale.launch import precompute
from knobctl.tools.nano.tokenizer import build_tokenizer

# The least important blocks first, as in the published scores of the original runs.
DROPPED_FIRST = (4, 13, 10, 2, 3, 11, 6, 7)
SMALL_SPACE = KnobSpace(("low", "high"), (1, 3), (2, 4), (4, 6), tier_crops=((1, 2), (3, 4)))


def published_order(n_blocks: int = 16) -> ImportanceScores:
    """Scores that drop blocks in the published order."""
    order = [*DROPPED_FIRST, *(block for block in range(n_blocks) if block not in DROPPED_FIRST)]
    return ImportanceScores(tuple(float(order.index(block)) for block in range(n_blocks)))


def tiny_config(num_blocks: int = 16, *, native_top_k: int = 8, vocab_size: int = 120) -> MolmoeConfig:
    """A model 16 wide with 10 experts; a crop has 24 x 24 pixels and gives 9 features."""
    vision = VisionConfig(
        image_height=24, image_width=24, patch_size=4, width=8, num_heads=2, mlp_width=16, num_layers=2, norm_eps=1e-5
    )
    return MolmoeConfig(
        d_model=16,
        num_blocks=num_blocks,
        num_heads=2,
        num_kv_heads=2,
        num_experts=10,
        native_top_k=native_top_k,
        feed_forward_width=16,
        vocab_size=vocab_size,
        embedding_size=vocab_size,
        additional_vocab_size=2,
        norm_eps=1e-5,
        rope_theta=10000.0,
        rope_full_precision=True,
        max_position_embeddings=512,
        pad_token_id=1,
        float32_vision_attention=True,
        vit_layers=(-1, -2),
        pooling_height=2,
        pooling_width=2,
        overlap_margins=(2, 2),
        max_crops=4,
        vision=vision,
    )


def write_tiny_model(directory: Path, num_blocks: int = 16, *, native_top_k: int = 8, seed: int = 3) -> Path:
    """Writes a checkpoint directory and returns it."""
    words = "what is the color of the shape? user: assistant: red green blue yes no is there a triangle circle"
    tokenizer = build_tokenizer([words])
    config = tiny_config(num_blocks, native_top_k=native_top_k, vocab_size=tokenizer.get_vocab_size())
    directory.mkdir(parents=True, exist_ok=True)
    save_molmoe(Molmoe(config).init_weights(seed=seed, std=0.35), directory)
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


def easy_samples(count: int) -> tuple[Sample, ...]:
    """Bundled samples, whose images have 64 x 64 pixels."""
    return load_samples("easy_vqa", limit=count, seed=42).samples


def tiny_knobs(
    directory: Path,
    *,
    space: KnobSpace | None = None,
    importance: ImportanceScores | None = None,
    max_new_tokens: int = 3,
) -> KnobModel:
    """Loads the model of `write_tiny_model` with knobs, three budgets, and easy_vqa as its task."""
    loaded = load_model(str(directory), device="cpu")
    return KnobModel(
        loaded,
        space=space or KnobSpace(),
        importance=importance or published_order(loaded.model.geometry.n_blocks),
        encoder=BudgetEncoder.from_seed(16, seed=0),
        tasks={"easy_vqa": Task("exact_match", max_new_tokens, None)},
        budgets_ms=(10.0, 20.0, 40.0),
    )


def run_config(model_dir: Path, out: Path, **changes: Any) -> PrecomputeConfig:
    """A run of the tiny model on eleven samples, which neither two nor three processes divide evenly."""
    values: dict[str, Any] = {
        "model": str(model_dir),
        "datasets": ("easy_vqa",),
        "out": out,
        "samples": 11,
        "device": "cpu",
        "space": SMALL_SPACE,
        "budgets": ("10", "20"),
        "runs": 2,
        "importance_samples": 5,
        "max_new_tokens": {"easy_vqa": 3},
        "part_samples": 3,
        "threads": 1,
    }
    return PrecomputeConfig(**{**values, **changes})


def rows_of(path: Path) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """All outcomes without their times, all latency tokens and all samples of a cache, sorted."""
    outcomes = pl.read_parquet(path / "outcomes" / "*.parquet")
    times = [name for name in outcomes.columns if name.endswith("_ms")]
    keys = ["sample_id", "tier", "insertion_position", "top_k", "num_blocks"]
    tokens = pl.read_parquet(path / "latency_tokens" / "*.parquet").sort(
        "sample_id", "tier", "insertion_position", "budget_ms"
    )
    return outcomes.drop(times).sort(keys), tokens, pl.read_parquet(path / "samples" / "*.parquet").sort("sample_id")


def assert_same_rows(left: Path, right: Path) -> None:
    """Two caches hold the same rows, except for times."""
    for one, other in zip(rows_of(left), rows_of(right), strict=True):
        assert one.equals(other)


def run_rank(config: PrecomputeConfig, rank: int, count: int, dies_at: int | None, answer: SimpleQueue) -> None:
    """One rank as torchrun starts it; puts (rank, samples run, summary or error message).

    `dies_at` is the number of the sample that it dies at or, for the first rank, of the part that it commits.
    """
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
    torch.set_num_threads(1)
    run_sample, commit, ran = SampleRunner.run, Part.commit, []
    committed = []

    def counted_commit(part, *args):
        commit(part, *args)
        committed.append(part)
        if len(committed) == dies_at:
            os._exit(9)

    def counted(runner, sample, *args, **options):
        ran.append(sample.sample_id)
        if len(ran) == dies_at:
            os._exit(9)
        return run_sample(runner, sample, *args, **options)

    SampleRunner.run, Part.commit = counted, counted_commit
    try:
        answer.put((rank, ran, precompute(config)))
    except KnobctlError as error:
        answer.put((rank, ran, str(error)))
