"""Caches written from arrays that a test works out by hand, for tests of baselines and evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from knobctl.controllers.budget_encoder import BudgetEncoder
from knobctl.controllers.checkpoint import Controllers, ModelIdentity
from knobctl.data.cache.manifest import Manifest
from knobctl.data.cache.reader import Cache, open_cache
from knobctl.data.cache.writer import CacheWriter
from knobctl.data.generated.population import GeneratedConfig, generate
from knobctl.data.knobs import KnobSpace
from knobctl.data.schema import latency_tokens_schema
from knobctl.tests.support.make_cache import fixed_size_lists

# Four settings: two tiers, one position, one top-k, two depths. Index 0 is low/12, 1 low/16, 2 high/12, 3 high/16.
FOUR = KnobSpace(("low", "high"), (1,), (8,), (12, 16))


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
    """Writes what the arrays say; NaN accuracy leaves the row out, NaN latency writes null. Ids are s000, s001, ..."""
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
    cell = np.nonzero(np.isfinite(accuracy_SX))
    latency_ms = latency_ms_SX[cell]
    outcomes: dict[str, object] = {
        "sample_id": np.array(ids, dtype=object)[cell[0]],
        "tier": np.array([setting.tier for setting in space.settings], dtype=object)[cell[1]],
        "accuracy": pa.array(accuracy_SX[cell], pa.float32()),
        "latency_ms": pa.array(latency_ms, pa.float32(), mask=np.isnan(latency_ms)),
        "answer": np.where(accuracy_SX[cell] > 0.5, "yes", "no"),
    }
    for name in ("insertion_position", "top_k", "num_blocks"):
        value_X = [getattr(setting, name) for setting in space.settings]
        outcomes[name] = pa.array(value_X, pa.int8()).take(pa.array(cell[1]))
    if runs_ms_SXR is not None:
        runs = [row[np.isfinite(row)] for row in runs_ms_SXR[cell]]  # NaN ends a row of fewer runs
        outcomes["latency_runs_ms"] = pa.array(runs, pa.list_(pa.float32()))
    if vision_tokens_SX is not None:
        outcomes["vision_tokens"] = pa.array(np.asarray(vision_tokens_SX)[cell], pa.int32())
    tokens = None if token_STPMD is None else _token_table(ids, space, budgets_ms, np.asarray(token_STPMD))
    manifest = Manifest(
        model_name="toy",
        d_model=d_model,
        n_blocks=max(space.num_blocks),
        native_top_k=max(space.top_k),
        space=space,
        budgets_ms=tuple(budgets_ms),
        latency_mode=latency_mode,
    )
    with CacheWriter(path, {"toy": True}) as writer:
        writer.write_part(pa.table(samples), pa.table(outcomes), tokens)
        writer.finish(manifest)
    return path


def _token_table(ids: list[str], space: KnobSpace, budgets_ms: Sequence[float], token_STPMD: np.ndarray) -> pa.Table:
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


def random_controllers(cache: Cache, path: Path, *, seed: int = 0, settings: dict | None = None) -> Path:
    """Saves controllers with random weights that fit the cache: they choose differently for every request."""
    encoder = BudgetEncoder.from_seed(cache.d_model, 0)
    manifest = cache.manifest
    identity = ModelIdentity(manifest.model_name, cache.d_model, manifest.n_blocks, manifest.native_top_k)
    made = Controllers.untrained(cache.space, identity, tuple(manifest.budgets_ms), encoder)
    generator = torch.Generator().manual_seed(seed)
    for stage in (made.stage1, made.stage2):
        # The linear part alone: hundreds of random waves would drown what a request says.
        smooth = ("smooth", "direction", "centre", "wave", "phase")
        linear = [
            buffer
            for name, buffer in stage.named_buffers()
            if buffer.is_floating_point() and not any(part in name for part in smooth)
        ]
        for tensor in (*stage.parameters(), *linear):
            tensor.data.normal_(0.0, 0.5, generator=generator)
    made.settings = settings or {}
    made.save_pretrained(path)
    return path
