"""Writes a generated cache to disk: `python -m knobctl.data.generated.cache OUT --structure nonlinear`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..cache.manifest import Manifest
from ..cache.writer import CacheWriter
from ..schema import latency_tokens_schema
from .population import N_BLOCKS, NATIVE_TOP_K, STRUCTURES, TOKENS_PER_CROP, GeneratedCache, GeneratedConfig, generate

SAMPLES_PER_PART = 256


def write_generated(cache: GeneratedCache, out: Path) -> None:
    """Writes the arrays as a cache of format 1, without a budget encoder, because no model made the tokens."""
    config = cache.config
    record = {**asdict(config), "space": config.space.to_dict(), "generator": "knobctl.data.generated.population"}
    manifest = Manifest(
        model_name=f"generated-{config.structure}",
        d_model=config.d_model,
        n_blocks=N_BLOCKS,
        native_top_k=NATIVE_TOP_K,
        space=config.space,
        budgets_ms=tuple(float(budget) for budget in cache.budgets_ms_M),
        latency_mode="blockwise",
    )
    with CacheWriter(out, record) as writer:
        for start in range(0, config.samples, SAMPLES_PER_PART):
            rows_N = np.arange(start, min(start + SAMPLES_PER_PART, config.samples))
            writer.write_part(_samples(cache, rows_N), _outcomes(cache, rows_N), _tokens(cache, rows_N))
        writer.finish(manifest)


def _samples(cache: GeneratedCache, rows_N: NDArray[np.int64]) -> pa.Table:
    return pa.table(
        {
            "sample_id": [cache.sample_ids[row] for row in rows_N],
            "dataset": cache.dataset_S[rows_N].tolist(),
            "split": cache.split_S[rows_N].tolist(),
            "language_feature": _vectors(cache.language_feature_SD[rows_N], pa.float32()),
            "image_id": [f"image of {cache.sample_ids[row]}" for row in rows_N],
            "text_tokens": pa.array(cache.text_tokens_S[rows_N], pa.int32()),
        }
    )


def _outcomes(cache: GeneratedCache, rows_N: NDArray[np.int64]) -> pa.Table:
    """Returns a row for every sample and setting that has an outcome."""
    space = cache.config.space
    known_NX = np.isfinite(cache.accuracy_SX[rows_N])
    sample_R, setting_R = np.nonzero(known_NX)
    settings = [space.settings[index] for index in setting_R]
    crops_R = cache.crops_ST[rows_N[sample_R], [space.tiers.index(s.tier) for s in settings]]
    return pa.table(
        {
            "sample_id": [cache.sample_ids[rows_N[row]] for row in sample_R],
            "tier": [s.tier for s in settings],
            "insertion_position": pa.array([s.insertion_position for s in settings], pa.int8()),
            "top_k": pa.array([s.top_k for s in settings], pa.int8()),
            "num_blocks": pa.array([s.num_blocks for s in settings], pa.int8()),
            "accuracy": pa.array(cache.accuracy_SX[rows_N][known_NX], pa.float32()),
            "latency_ms": pa.array(cache.latency_ms_SX[rows_N][known_NX], pa.float32()),
            "vision_tokens": pa.array(TOKENS_PER_CROP * (crops_R + 1), pa.int32()),
            "output_tokens": pa.array(cache.output_tokens_S[rows_N[sample_R]], pa.int32()),
        }
    )


def _tokens(cache: GeneratedCache, rows_N: NDArray[np.int64]) -> pa.Table:
    space = cache.config.space
    grid = [(t, p, b) for t in space.tiers for p in space.insertion_positions for b in cache.budgets_ms_M]
    ids = [cache.sample_ids[row] for row in rows_N]
    token_RD = cache.token_STPMD[rows_N].reshape(len(ids) * len(grid), -1)
    return pa.table(
        {
            "sample_id": [name for name in ids for _ in grid],
            "tier": [tier for tier, _, _ in grid] * len(ids),
            "insertion_position": pa.array([position for _, position, _ in grid] * len(ids), pa.int8()),
            "budget_ms": pa.array([budget for _, _, budget in grid] * len(ids), pa.float32()),
            "token": _vectors(token_RD, pa.float16()),
        },
        schema=latency_tokens_schema(cache.config.d_model)[0],
    )


def _vectors(rows_RD: NDArray[np.floating], kind: pa.DataType) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(rows_RD.reshape(-1), kind), rows_RD.shape[1])


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--structure", type=click.Choice(list(STRUCTURES)), default="linear", show_default=True)
@click.option("--train", default=8000, show_default=True, help="Training samples.")
@click.option("--val", default=2000, show_default=True)
@click.option("--test", default=2000, show_default=True)
@click.option("--d-model", default=256, show_default=True)
@click.option("--budgets", default=4, show_default=True, help="Budgets of the grid.")
@click.option("--holes", default=0.0, show_default=True, help="Share of outcomes left out.")
@click.option("--seed", default=0, show_default=True)
def main(
    out: Path, structure: str, train: int, val: int, test: int, d_model: int, budgets: int, holes: float, seed: int
) -> None:
    """Write a cache of known structure to OUT."""
    config = GeneratedConfig(train, val, test, d_model, budgets, structure, hole_share=holes, seed=seed)
    write_generated(generate(config), out)
    click.echo(f"{config.samples:,} samples under {len(config.space.settings)} settings: {out}")


if __name__ == "__main__":
    main()
