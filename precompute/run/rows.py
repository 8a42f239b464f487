"""Converts results into the three tables of one part of the cache. Independent of the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import pyarrow as pa

from ...data.outcome import Outcome
from ...data.schema import latency_tokens_schema, outcomes_schema, samples_schema
from .sample import SampleResult


def part_tables(
    results: Sequence[SampleResult], positions: Sequence[int], budgets_ms: Sequence[float]
) -> tuple[pa.Table, pa.Table, pa.Table]:
    """Returns (samples, outcomes, latency_tokens) of some samples, in their order."""
    d_model = len(results[0].language_feature_D)
    return _samples(results, d_model), _outcomes(results), _tokens(results, d_model, positions, budgets_ms)


def _samples(results: Sequence[SampleResult], d_model: int) -> pa.Table:
    required, optional = samples_schema(d_model)
    feature = np.concatenate([result.language_feature_D for result in results]).astype(np.float32)
    columns: dict[str, Any] = {
        "sample_id": [result.sample.sample_id for result in results],
        "dataset": [result.sample.dataset for result in results],
        "split": [result.sample.split for result in results],
        "language_feature": pa.FixedSizeListArray.from_arrays(pa.array(feature), d_model),
        "question": [result.sample.question for result in results],
        "answers": [list(result.sample.answers) for result in results],
        "image_id": [result.sample.image_id for result in results],
        "image_ref": [result.sample.image.ref for result in results],
        "text_tokens": [result.text_tokens for result in results],
    }
    return pa.table(columns, schema=pa.schema([*required, *optional]))


def _outcomes(results: Sequence[SampleResult]) -> pa.Table:
    required, optional = outcomes_schema()
    rows = [(result.sample, *row) for result in results for row in result.outcomes.items()]
    columns: dict[str, list[Any]] = {
        "sample_id": [sample.sample_id for sample, _, _ in rows],
        "tier": [setting.tier for _, setting, _ in rows],
        "insertion_position": [setting.insertion_position for _, setting, _ in rows],
        "top_k": [setting.top_k for _, setting, _ in rows],
        "num_blocks": [setting.num_blocks for _, setting, _ in rows],
    }
    for field in fields(Outcome):
        columns[field.name] = [getattr(outcome, field.name) for _, _, outcome in rows]
    columns["latency_runs_ms"] = [list(runs) if runs else None for runs in columns["latency_runs_ms"]]
    return pa.table(columns, schema=pa.schema([*required, *optional]))


def _tokens(
    results: Sequence[SampleResult], d_model: int, positions: Sequence[int], budgets_ms: Sequence[float]
) -> pa.Table:
    required, _ = latency_tokens_schema(d_model)
    columns: dict[str, list[Any]] = {name: [] for name in required.names if name != "token"}
    vectors = []
    for result in results:
        for tier, token_PMD in result.token_PMD.items():
            assert token_PMD.shape == (len(positions), len(budgets_ms), d_model)
            vectors.append(token_PMD.reshape(-1))
            for position in positions:
                columns["sample_id"] += [result.sample.sample_id] * len(budgets_ms)
                columns["tier"] += [tier] * len(budgets_ms)
                columns["insertion_position"] += [position] * len(budgets_ms)
                columns["budget_ms"] += budgets_ms
    token = pa.FixedSizeListArray.from_arrays(pa.array(np.concatenate(vectors)), d_model)
    return pa.table({**columns, "token": token}, schema=required)
