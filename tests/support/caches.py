"""Writes small caches for tests.

`make_cache` fills one with seeded noise, `write_array_cache` with arrays that a test works out by hand,
`generated_cache` with the project's generated population, all through `CacheWriter`. `foreign_cache` writes one as
another program would: from the format's page alone, with pyarrow.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from knobctl.data.cache.manifest import Manifest
from knobctl.data.cache.reader import Cache, open_cache
from knobctl.data.cache.run_record import Shard
from knobctl.data.cache.writer import CacheWriter
from knobctl.data.files.atomic import Disk
from knobctl.data.generated.population import GeneratedConfig, generate
from knobctl.data.knobs import KnobSpace
from knobctl.data.plans import ImportanceScores
from knobctl.data.schema import latency_tokens_schema

TINY_SPACE = KnobSpace(("low", "high"), (1, 2), (2, 4), (3, 4))
BUDGETS_MS = (20.0, 40.0, 80.0)
# Four settings: two tiers, one position, one top-k, two depths. Index 0 is low/12, 1 low/16, 2 high/12, 3 high/16.
FOUR = KnobSpace(("low", "high"), (1,), (8,), (12, 16))
IDS = ["a/1", "a/2", "b/1", "b/2", "ü/3"]

Edit = Callable[[pa.Table], pa.Table]


class QuickDisk(Disk):
    """Skips `fsync`, whose absence only a power cut would show: it takes tens of ms on a busy disk."""

    def sync(self, descriptor: int) -> None:
        pass


# Tables


def fixed_size_lists(rows: np.ndarray, kind: pa.DataType) -> pa.FixedSizeListArray:
    """A [rows, width] array as an Arrow column of vectors."""
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1), kind), rows.shape[1])


def sample_table(ids: list[str], d_model: int, seed: int = 0) -> pa.Table:
    """Rows of `samples` with seeded content, which depends on a sample's id and the seed alone."""
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
    """Rows of `outcomes` for every setting of every sample: seeded noise; larger settings are better and slower."""
    crops = dict(zip(space.tiers, space.mean_tier_sizes, strict=True))
    size_X = np.array(
        [
            crops[setting.tier] / max(space.mean_tier_sizes)
            + setting.top_k / max(space.top_k)
            + setting.num_blocks / max(space.num_blocks)
            for setting in space.settings
        ]
    )
    size_X /= 3
    ease_S, noise_SXR = [], []
    for name in ids:
        generator = _generator(seed, name, 2)
        ease_S.append(generator.random())
        noise_SXR.append(generator.standard_normal((len(size_X), runs)))
    right_SX = np.array(ease_S)[:, None] < size_X
    runs_ms_SXR = 10 + 60 * size_X[:, None] * (1 + 0.02 * np.array(noise_SXR))
    return array_outcomes(
        ids,
        space,
        right_SX.astype(float),
        np.median(runs_ms_SXR, axis=2),
        answer_SX=np.where(right_SX, np.array([f"answer {name}" for name in ids])[:, None], "no idea"),
        vision_tokens_SX=np.tile([int(16 * crops[setting.tier]) for setting in space.settings], (len(ids), 1)),
        output_tokens_SX=np.full(right_SX.shape, 2),
        latency_std_ms_SX=runs_ms_SXR.std(axis=2),
        latency_runs_ms_SXR=runs_ms_SXR,
        outcome_source_SX=np.full(right_SX.shape, "measured"),
    )


# Of `outcomes`: the optional columns that `array_outcomes` takes, each from the array of its name.
OPTIONAL_OUTCOMES = {
    "answer": pa.string(),
    "vision_tokens": pa.int32(),
    "output_tokens": pa.int32(),
    "latency_std_ms": pa.float32(),
    "latency_runs_ms": pa.list_(pa.float32()),
    "outcome_source": pa.string(),
}


def array_outcomes(
    ids: list[str], space: KnobSpace, accuracy_SX: np.ndarray, latency_ms_SX: np.ndarray, **optional: np.ndarray | None
) -> pa.Table:
    """Rows of `outcomes` from arrays, one for each finite accuracy; a NaN latency is null.

    Args:
        optional: further columns as `<column>_SX` or `latency_runs_ms_SXR`, where NaN ends a row of fewer runs.
    """
    cell = np.nonzero(np.isfinite(accuracy_SX))
    latency_ms = latency_ms_SX[cell]
    columns: dict[str, Any] = {
        "sample_id": np.array(ids, dtype=object)[cell[0]],
        "tier": np.array([setting.tier for setting in space.settings], dtype=object)[cell[1]],
    }
    for name in ("insertion_position", "top_k", "num_blocks"):
        value_X = [getattr(setting, name) for setting in space.settings]
        columns[name] = pa.array(value_X, pa.int8()).take(pa.array(cell[1]))
    columns["accuracy"] = pa.array(accuracy_SX[cell], pa.float32())
    columns["latency_ms"] = pa.array(latency_ms, pa.float32(), mask=np.isnan(latency_ms))
    for argument, array in optional.items():
        name = argument.rpartition("_")[0]
        if array is not None:
            values = np.asarray(array)[cell]
            rows = [row[np.isfinite(row)] for row in values] if values.ndim == 2 else values.tolist()
            columns[name] = pa.array(rows, OPTIONAL_OUTCOMES[name])
    return pa.table(columns)


def token_table(
    ids: list[str], space: KnobSpace, budgets_ms: tuple[float, ...], d_model: int, seed: int = 0
) -> pa.Table:
    """Rows of `latency_tokens` with seeded content: every tier, position and budget of every sample."""
    shape = (len(space.tiers), len(space.insertion_positions), len(budgets_ms), d_model)
    token_STPMD = np.stack([_generator(seed, name, 3).standard_normal(shape) for name in ids])
    return array_tokens(ids, space, budgets_ms, token_STPMD)


def array_tokens(ids: list[str], space: KnobSpace, budgets_ms: Sequence[float], token_STPMD: np.ndarray) -> pa.Table:
    """Rows of `latency_tokens` from an array."""
    sample, tier, position, budget = np.indices(token_STPMD.shape[:4]).reshape(4, -1)
    return pa.table(
        {
            "sample_id": np.array(ids, dtype=object)[sample],
            "tier": np.array(space.tiers, dtype=object)[tier],
            "insertion_position": pa.array(np.array(space.insertion_positions)[position], pa.int8()),
            "budget_ms": pa.array(np.array(budgets_ms)[budget], pa.float32()),
            "token": fixed_size_lists(token_STPMD.reshape(len(sample), -1).astype(np.float16), pa.float16()),
        },
        schema=latency_tokens_schema(token_STPMD.shape[-1])[0],
    )


def tiny_manifest(
    *, d_model: int = 8, space: KnobSpace = TINY_SPACE, budgets_ms: Sequence[float] = BUDGETS_MS, **changes: object
) -> Manifest:
    """A manifest that fits the tables above."""
    n_blocks = max(space.num_blocks)
    values: dict = {
        "model_name": "toy",
        "d_model": d_model,
        "n_blocks": n_blocks,
        "native_top_k": max(space.top_k),
        "space": space,
        "budgets_ms": tuple(budgets_ms),
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


# Caches


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
    """Writes a complete cache of seeded noise and returns its path.

    Samples are s0000, s0001, ... in three splits and two datasets.
    """
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


def write_array_cache(
    path: Path,
    accuracy_SX: np.ndarray,
    latency_ms_SX: np.ndarray,
    *,
    space: KnobSpace = FOUR,
    budgets_ms: Sequence[float] = (100.0,),
    splits: Sequence[str] | None = None,
    datasets: Sequence[str] | None = None,
    image_ids: Sequence[str | None] | None = None,
    feature_SD: np.ndarray | None = None,
    token_STPMD: np.ndarray | None = None,
    runs_ms_SXR: np.ndarray | None = None,
    vision_tokens_SX: np.ndarray | None = None,
    text_tokens_S: np.ndarray | None = None,
    latency_mode: str = "blockwise",
) -> Path:
    """Writes a complete cache from arrays and returns its path; samples are s000, s001, ...

    A NaN accuracy leaves the row out, a NaN latency is written as null.
    """
    accuracy_SX, latency_ms_SX = np.asarray(accuracy_SX, float), np.asarray(latency_ms_SX, float)
    count = len(accuracy_SX)
    ids = [f"s{index:03d}" for index in range(count)]
    feature_SD = np.zeros((count, 4)) if feature_SD is None else np.asarray(feature_SD)
    d_model = feature_SD.shape[1]
    samples: dict[str, object] = {
        "sample_id": ids,
        "dataset": list(datasets or ["one"] * count),
        "split": list(splits or ["train"] * count),
        "answers": [["yes"]] * count,
        "image_id": pa.array(image_ids or [f"image {name}" for name in ids], pa.string()),
    }
    if d_model:
        samples["language_feature"] = fixed_size_lists(feature_SD.astype(np.float32), pa.float32())
    if text_tokens_S is not None:
        samples["text_tokens"] = pa.array(text_tokens_S, pa.int32())
    outcomes = array_outcomes(
        ids,
        space,
        accuracy_SX,
        latency_ms_SX,
        answer_SX=np.where(accuracy_SX > 0.5, "yes", "no"),
        latency_runs_ms_SXR=runs_ms_SXR,
        vision_tokens_SX=vision_tokens_SX,
    )
    tokens = None if token_STPMD is None else array_tokens(ids, space, budgets_ms, np.asarray(token_STPMD))
    manifest = Manifest(
        model_name="toy",
        d_model=d_model,
        n_blocks=max(space.num_blocks),
        native_top_k=max(space.top_k),
        space=space,
        budgets_ms=tuple(budgets_ms),
        latency_mode=latency_mode,
    )
    with CacheWriter(path, {"toy": True}, disk=QuickDisk()) as writer:
        writer.write_part(pa.table(samples), outcomes, tokens)
        writer.finish(manifest)
    return path


def generated_cache(path: Path, *, holes: float = 0.0, **config: object) -> Cache:
    """Writes the project's generated cache of known structure, small unless `config` says otherwise, and opens it."""
    values = {"train": 160, "val": 60, "test": 80, "d_model": 16, "n_budgets": 3, "seed": 1, **config}
    made = generate(GeneratedConfig(hole_share=holes, **values))
    write_array_cache(
        path,
        made.accuracy_SX,
        made.latency_ms_SX,
        space=made.config.space,
        budgets_ms=[float(budget) for budget in made.budgets_ms_M],
        splits=made.split_S.tolist(),
        datasets=made.dataset_S.tolist(),
        image_ids=[f"image {index // 2}" for index in range(len(made.sample_ids))],
        feature_SD=made.language_feature_SD,
        token_STPMD=made.token_STPMD,
    )
    return open_cache(path)


def foreign_cache(
    path: Path,
    *,
    samples: Edit | None = None,
    outcomes: Edit | None = None,
    latency_tokens: Edit | None = None,
    manifest: Callable[[dict[str, Any]], None] | None = None,
    ids: list[str] = IDS,
    d_model: int = 4,
    space: KnobSpace = TINY_SPACE,
    budgets_ms: tuple[float, ...] = BUDGETS_MS,
    rows_per_part: int = 1 << 30,
    **parquet: Any,
) -> Path:
    """Writes only the required columns and manifest keys, without the project's writer, and returns the path.

    Args:
        samples, outcomes, latency_tokens, manifest: edits made before the table or manifest is written.
        parquet: options of pyarrow's Parquet writer.
    """
    tables = {
        "samples": sample_table(ids, d_model).select(["sample_id", "dataset", "split", "language_feature"]),
        "outcomes": outcome_table(ids, space).select(
            ["sample_id", "tier", "insertion_position", "top_k", "num_blocks", "accuracy", "latency_ms"]
        ),
        "latency_tokens": token_table(ids, space, budgets_ms, d_model),
    }
    for (name, table), edit in zip(tables.items(), (samples, outcomes, latency_tokens), strict=True):
        (path / name).mkdir(parents=True)
        edited = edit(table) if edit else table
        for number, start in enumerate(range(0, max(edited.num_rows, 1), rows_per_part)):
            pq.write_table(edited.slice(start, rows_per_part), path / name / f"part-{number}.parquet", **parquet)
    record: dict[str, Any] = {
        "format": "knobctl-cache",
        "version": 1,
        "model": {"name": "another", "d_model": d_model, "n_blocks": max(space.num_blocks), "native_top_k": 4},
        "knobs": space.to_dict(),
        "budgets_ms": list(budgets_ms),
        "latency_mode": "end_to_end",
    }
    if manifest:
        manifest(record)
    (path / "cache.json").write_text(json.dumps(record))
    return path


# Edits of a table before `foreign_cache` writes it


def put(name: str, column: Any, kind: pa.DataType | None = None) -> Edit:
    """Replaces a column by values, by an array, or by the result of a function of the old column."""

    def edit(table: pa.Table) -> pa.Table:
        old = table.column(name)
        new = column(old) if callable(column) else column
        if not isinstance(new, pa.Array | pa.ChunkedArray):
            new = pa.array(new, kind or old.type)
        return table.set_column(table.column_names.index(name), name, new)

    return edit


def put_row(name: str, row: int, value: Any) -> Edit:
    """Changes one value of a column."""

    def change(old: pa.ChunkedArray) -> pa.Array:
        values = old.to_pylist()
        values[row] = value
        return pa.array(values, old.type)

    return put(name, change)


def cast(name: str, kind: pa.DataType) -> Edit:
    """Converts a column to another type."""
    return put(name, lambda old: old.cast(kind))


def _generator(seed: int, name: str, stream: int = 0) -> np.random.Generator:
    return np.random.default_rng([seed, stream, *name.encode()])
