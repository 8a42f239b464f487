"""Writes small valid caches for tests: seeded noise on simple slopes, larger settings being better and slower."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from knobctl.data.cache.manifest import Manifest
from knobctl.data.cache.run_record import Shard
from knobctl.data.cache.writer import CacheWriter
from knobctl.data.files.atomic import Disk
from knobctl.data.knobs import KnobSpace
from knobctl.data.plans import ImportanceScores
from knobctl.data.schema import latency_tokens_schema

TINY_SPACE = KnobSpace(("low", "high"), (1, 2), (2, 4), (3, 4))
BUDGETS_MS = (20.0, 40.0, 80.0)


class QuickDisk(Disk):
    """Leaves out what only a power cut would show: a sync costs tens of ms on a busy disk."""

    def sync(self, descriptor: int) -> None:
        pass


def fixed_size_lists(rows: np.ndarray, kind: pa.DataType) -> pa.FixedSizeListArray:
    """A [rows, width] array as an Arrow column of vectors."""
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1), kind), rows.shape[1])


def sample_table(ids: list[str], d_model: int, seed: int = 0) -> pa.Table:
    """Rows of `samples`: the content of each depends on its id and the seed alone."""
    features = np.stack([_generator(seed, name).standard_normal(d_model) for name in ids]).astype(np.float32)
    draws = [int(_generator(seed, name, 1).integers(100)) for name in ids]
    return pa.table(
        {
            "sample_id": ids,
            "dataset": ["even" if draw % 2 == 0 else "odd" for draw in draws],
            "split": ["train" if draw < 60 else "val" if draw < 75 else "test" for draw in draws],
            "language_feature": fixed_size_lists(features, pa.float32()),
            "question": [f"what is {name}?" for name in ids],
            "answers": [[f"answer {name}"] for name in ids],
            "image_id": [f"image of {name}" for name in ids],
            "image_ref": [f"{name}.png" for name in ids],
            "text_tokens": pa.array([5 + draw % 7 for draw in draws], pa.int32()),
        }
    )


def outcome_table(ids: list[str], space: KnobSpace, seed: int = 0, runs: int = 5) -> pa.Table:
    """Rows of `outcomes`: every setting of every sample."""
    settings = space.settings
    columns: dict[str, list] = {name: [] for name in ("accuracy", "latency_ms", "answer", "latency_runs_ms", "std")}
    crops = dict(zip(space.tiers, space.mean_crops, strict=True))
    for name in ids:
        generator = _generator(seed, name, 2)
        ease = generator.random()
        for setting in settings:
            size = crops[setting.tier] / max(space.mean_crops) + setting.top_k / max(space.top_k)
            size = (size + setting.num_blocks / max(space.num_blocks)) / 3
            right = ease < size
            times = 10 + 60 * size * (1 + 0.02 * generator.standard_normal(runs))
            columns["accuracy"].append(1.0 if right else 0.0)
            columns["latency_ms"].append(float(np.median(times)))
            columns["answer"].append(f"answer {name}" if right else "no idea")
            columns["latency_runs_ms"].append(times.tolist())
            columns["std"].append(float(times.std()))
    repeated = [s for _ in ids for s in settings]
    return pa.table(
        {
            "sample_id": [name for name in ids for _ in settings],
            "tier": [s.tier for s in repeated],
            "insertion_position": pa.array([s.insertion_position for s in repeated], pa.int8()),
            "top_k": pa.array([s.top_k for s in repeated], pa.int8()),
            "num_blocks": pa.array([s.num_blocks for s in repeated], pa.int8()),
            "accuracy": pa.array(columns["accuracy"], pa.float32()),
            "latency_ms": pa.array(columns["latency_ms"], pa.float32()),
            "answer": columns["answer"],
            "vision_tokens": pa.array([int(16 * crops[s.tier]) for s in repeated], pa.int32()),
            "output_tokens": pa.array([2] * len(repeated), pa.int32()),
            "latency_std_ms": pa.array(columns["std"], pa.float32()),
            "latency_runs_ms": pa.array(columns["latency_runs_ms"], pa.list_(pa.float32())),
            "outcome_source": ["measured"] * len(repeated),
        }
    )


def token_table(
    ids: list[str], space: KnobSpace, budgets_ms: tuple[float, ...], d_model: int, seed: int = 0
) -> pa.Table:
    """Rows of `latency_tokens`: every tier, position and budget of every sample."""
    grid = [(t, p, b) for t in space.tiers for p in space.insertion_positions for b in budgets_ms]
    token = [_generator(seed, name, 3).standard_normal((len(grid), d_model)) for name in ids]
    return pa.table(
        {
            "sample_id": [name for name in ids for _ in grid],
            "tier": [t for _ in ids for t, _, _ in grid],
            "insertion_position": pa.array([p for _ in ids for _, p, _ in grid], pa.int8()),
            "budget_ms": pa.array([b for _ in ids for _, _, b in grid], pa.float32()),
            "token": fixed_size_lists(np.concatenate(token).astype(np.float16), pa.float16()),
        },
        schema=latency_tokens_schema(d_model)[0],
    )


def tiny_manifest(
    *, d_model: int = 8, space: KnobSpace = TINY_SPACE, budgets_ms: tuple[float, ...] = BUDGETS_MS, **changes: object
) -> Manifest:
    """A manifest that fits the tables above."""
    n_blocks = max(space.num_blocks)
    values: dict = {
        "model_name": "toy",
        "d_model": d_model,
        "n_blocks": n_blocks,
        "native_top_k": max(space.top_k),
        "space": space,
        "budgets_ms": budgets_ms,
        "latency_mode": "blockwise",
        "fingerprint": "f" * 64,
        "n_experts": max(space.top_k),
        "dtype": "float32",
        "device": {"type": "cpu", "name": "toy"},
        "importance": ImportanceScores(tuple(0.1 for _ in range(n_blocks))),
        "runs": 5,
        "latency_statistic": "median",
    }
    return Manifest(**{**values, **changes})


def make_cache(
    path: Path,
    *,
    samples: int = 12,
    d_model: int = 8,
    space: KnobSpace = TINY_SPACE,
    budgets_ms: tuple[float, ...] = BUDGETS_MS,
    tokens: bool = True,
    seed: int = 0,
    samples_per_part: int = 5,
    shard: Shard | None = None,
    budget_encoder: bytes | None = None,
) -> Path:
    """Writes a complete cache to `path` and returns it; samples are s0000, s0001, ... in three splits, two datasets."""
    shard = shard or Shard()
    ids = [f"s{index:04d}" for index in range(samples)][shard.index :: shard.count]
    run = {"seed": seed, "samples": samples, "knobs": space.to_dict(), "budgets_ms": list(budgets_ms)}
    with CacheWriter(path, run, shard=shard, disk=QuickDisk()) as writer:
        for start in range(0, len(ids), samples_per_part):
            some = ids[start : start + samples_per_part]
            writer.write_part(
                sample_table(some, d_model, seed),
                outcome_table(some, space, seed),
                token_table(some, space, budgets_ms, d_model, seed) if tokens else None,
            )
        writer.finish(tiny_manifest(d_model=d_model, space=space, budgets_ms=budgets_ms), budget_encoder)
    return path


def _generator(seed: int, name: str, stream: int = 0) -> np.random.Generator:
    return np.random.default_rng([seed, stream, *name.encode()])
