"""Names and types of the columns in the cache's three tables, format 1."""

from __future__ import annotations

import pyarrow as pa

FORMAT_NAME = "knobctl-cache"
FORMAT_VERSION = 1

SPLITS = ("train", "val", "test")
LATENCY_MODES = ("blockwise", "end_to_end", "imported")
OUTCOME_SOURCES = ("measured", "imported")

_STRINGS = pa.list_(pa.string())


def samples_schema(d_model: int) -> tuple[pa.Schema, pa.Schema]:
    """Returns the (required, optional) columns of `samples`.

    `d_model` is 0 in imported results, which have no language features; the column `language_feature` is then absent.
    """
    feature = [("language_feature", pa.list_(pa.float32(), d_model))] if d_model else []
    required = pa.schema([("sample_id", pa.string()), ("dataset", pa.string()), ("split", pa.string()), *feature])
    optional = pa.schema(
        [
            ("question", pa.string()),
            ("answers", _STRINGS),
            ("image_id", pa.string()),
            ("image_ref", pa.string()),
            ("text_tokens", pa.int32()),
        ]
    )
    return required, optional


def outcomes_schema() -> tuple[pa.Schema, pa.Schema]:
    """Returns the (required, optional) columns of `outcomes`. `insertion_position` is null in imported results."""
    required = pa.schema(
        [
            ("sample_id", pa.string()),
            ("tier", pa.string()),
            ("insertion_position", pa.int8()),
            ("top_k", pa.int8()),
            ("num_blocks", pa.int8()),
            ("accuracy", pa.float32()),
            ("latency_ms", pa.float32()),
        ]
    )
    optional = pa.schema(
        [
            ("answer", pa.string()),
            ("vision_tokens", pa.int32()),
            ("output_tokens", pa.int32()),
            ("latency_std_ms", pa.float32()),
            ("vision_ms", pa.float32()),
            ("prefill_ms", pa.float32()),
            ("decode_ms", pa.float32()),
            ("latency_runs_ms", pa.list_(pa.float32())),
            ("outcome_source", pa.string()),
        ]
    )
    return required, optional


def latency_tokens_schema(d_model: int) -> tuple[pa.Schema, pa.Schema]:
    """Returns the (required, optional) columns of `latency_tokens`."""
    required = pa.schema(
        [
            ("sample_id", pa.string()),
            ("tier", pa.string()),
            ("insertion_position", pa.int8()),
            ("budget_ms", pa.float32()),
            ("token", pa.list_(pa.float16(), d_model)),
        ]
    )
    return required, pa.schema([])
