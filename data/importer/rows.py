"""One row of a results file: the relevant values, typed and checked; None if missing. The tally counts problems."""

from __future__ import annotations

import math
from typing import Any

import pyarrow as pa

from ..printable import printable
from .report import Tally
from .stream import DuplicateKeys

MAX_TIME_MS = 1e9  # eleven days; also keeps float32 finite
MAX_ACCURACY = 1_000.0  # on any scale: per cent, per mille
MAX_TOKENS = 10_000_000
MAX_TEXT = 100_000
MAX_ANSWERS = 1_000
MAX_ID = 200

ROW_SCHEMA = pa.schema(
    [
        ("row", pa.int32()),
        ("example_id", pa.string()),
        ("image_id", pa.string()),
        ("question", pa.string()),
        ("answers", pa.list_(pa.string())),
        ("accuracy", pa.float32()),
        ("answer", pa.string()),
        ("latency_ms", pa.float32()),
        ("vision_ms", pa.float32()),
        ("prefill_ms", pa.float32()),
        ("decode_ms", pa.float32()),
        ("vision_tokens", pa.int32()),
        ("output_tokens", pa.int32()),
        ("old_schema", pa.bool_()),
    ]
)

# Keys that occur only in the schemas before 2025-12-31 05:15, in which T_LLM_decode is a difference.
_OLD_KEYS = ("T_vision_encoder", "T_projector", "selected_crops", "selected_vision_tokens", "input_text_tokens")
_TIMES = (("latency_ms", "T_total"), ("vision_ms", "T_vision_total"), ("prefill_ms", "T_LLM_prefill"))
_SUM_TOLERANCE = 1.001
_ROUNDING = 1e-6  # a mean of scores in floating point may exceed 1 by this


class RowReader:
    """Turns the rows of one file into columns. tier, top_k and num_blocks are those in the file's name."""

    def __init__(self, tally: Tally, *, tier: str, top_k: int, num_blocks: int) -> None:
        self.tally = tally
        self.columns: dict[str, list[Any]] = {name: [] for name in ROW_SCHEMA.names}
        self.runs: set[int] = set()
        self.rows_read = 0
        self.ranks = 0  # number of ranks joined here: `sample_id` increases within a rank
        self._last_sample_id: int | float = math.inf
        self._expected = (("tier", tier), ("top_k", top_k), ("num_active_blocks", num_blocks))

    def add(self, index: int, row: Any) -> None:
        """Adds one element of `per_sample_results`."""
        self.rows_read += 1
        self._row = f"row {index}"
        if not isinstance(row, dict):
            self._doubt("malformed_row", f"not an object but {type(row).__name__}")
            return
        self._count_ranks(row.get("sample_id"))
        metadata = row.get("metadata", {})
        if metadata is None:
            metadata = {}
        if not isinstance(metadata, dict):
            self._doubt("malformed_row", "metadata is not an object")
            return
        if isinstance(row, DuplicateKeys) or isinstance(metadata, DuplicateKeys):
            self._doubt("duplicate_keys")
            return
        for key, value in self._expected:
            if key in row and (type(row[key]) is not type(value) or row[key] != value):
                self._doubt("contradictory_row", key)
                return
        if row.get("accuracy") == 0.0 and row.get("pred") == "" and not metadata:
            self._doubt("scoring_failed")
            return
        example_id = self._identity(metadata)
        if example_id is None:
            return
        for name, value in self._values(row, metadata).items():
            self.columns[name].append(value)
        self.columns["row"].append(index)
        self.columns["example_id"].append(example_id)

    def table(self) -> pa.Table:
        return pa.table(self.columns, schema=ROW_SCHEMA)

    def _values(self, row: dict[str, Any], metadata: dict[str, Any]) -> dict[str, Any]:
        """Returns all columns except row number and identity."""
        output_tokens = self._count(row, "output_tokens")
        values: dict[str, Any] = {
            "image_id": self._image_id(metadata),
            "question": self._text(metadata, "question"),
            "answers": self._answers(metadata),
            "accuracy": self._accuracy(row),
            "answer": self._text(row, "pred"),
            "vision_tokens": self._count(row, "actual_vision_tokens"),
            "output_tokens": output_tokens,
            "old_schema": any(key in row for key in _OLD_KEYS),
        }
        for name, key in _TIMES:
            values[name] = self._time(row, key, zero_counts=False)
        # A single output token comes from the prefill; only then is a decode time of 0.0 a measurement.
        values["decode_ms"] = self._time(row, "T_LLM_decode", zero_counts=output_tokens == 1)
        stages = [values[name] for name in ("vision_ms", "prefill_ms", "decode_ms")]
        total = values["latency_ms"]
        if total is not None and not values["old_schema"] and sum(s or 0.0 for s in stages) > _SUM_TOLERANCE * total:
            self._doubt("stages_above_total")
        self._count_runs(row.get("T_decode_per_step"))
        return values

    def _doubt(self, code: str, detail: str = "") -> None:
        self.tally.add(code, detail, example=self._row)

    def _identity(self, metadata: dict[str, Any]) -> str | None:
        key = "example_id"
        if metadata.get(key) is None and metadata.get("question_id") is not None:
            key = "question_id"
            self._doubt("question_id_used")
        value = metadata.get(key)
        if value is None:
            self._doubt("no_identity")
            return None
        name = plain_id(value)
        if name is None:
            self._doubt("bad_identity", printable(value, 40))
        return name

    def _image_id(self, metadata: dict[str, Any]) -> str | None:
        value = metadata.get("image_id")
        if value is None:
            return None
        name = plain_id(value)
        if name is None:
            self._doubt("bad_value", "image_id")
        return name

    def _accuracy(self, row: dict[str, Any]) -> float | None:
        value = row.get("accuracy")
        if value is None or (isinstance(value, float) and math.isnan(value)):
            self._doubt("missing_accuracy")
            return None
        if not _is_number(value) or not 0.0 <= value <= MAX_ACCURACY:
            self._doubt("bad_accuracy", printable(value, 20))
            return None
        return 1.0 if 1.0 < value <= 1.0 + _ROUNDING else float(value)  # larger values: see accuracy.py

    def _time(self, row: dict[str, Any], key: str, *, zero_counts: bool) -> float | None:
        """Returns ms; None if not measured: absent, null, NaN, or the profiler's default of 0.0."""
        value = row.get(key)
        if value is None or (isinstance(value, float) and math.isnan(value)):
            self._doubt("missing_time", key)
            return None
        if not _is_number(value) or not 0.0 <= value <= MAX_TIME_MS:
            self._doubt("bad_time", key)
            return None
        if value == 0.0 and not zero_counts:
            self._doubt("missing_time", key)
            return None
        return float(value)

    def _count(self, row: dict[str, Any], key: str) -> int | None:
        value = row.get(key)
        if value is None or (
            _is_number(value) and (value == 0 or math.isnan(value))
        ):  # the profiler writes 0 for "unknown"
            self._doubt("missing_value", key)
            return None
        if not _is_number(value) or not 1 <= value <= MAX_TOKENS or value != int(value):
            self._doubt("bad_value", key)
            return None
        return int(value)

    def _text(self, record: dict[str, Any], key: str) -> str | None:
        value = record.get(key)
        if value is None:
            self._doubt("missing_value", key)
            return None
        if not isinstance(value, str) or len(value) > MAX_TEXT:
            self._doubt("bad_value", key)
            return None
        return self._whole(value, key)

    def _answers(self, metadata: dict[str, Any]) -> list[str] | None:
        value = metadata.get("answers")
        if value is None:
            self._doubt("missing_value", "answers")
            return None
        if not isinstance(value, list) or len(value) > MAX_ANSWERS:
            self._doubt("bad_value", "answers")
            return None
        if any(not isinstance(answer, str) or len(answer) > MAX_TEXT for answer in value):
            self._doubt("bad_value", "answers")
            return None
        return [self._whole(answer, "answers") for answer in value]

    def _whole(self, text: str, key: str) -> str:
        """Returns the text with lone surrogates replaced, so that it can be encoded as UTF-8."""
        if text.isascii():
            return text
        replaced = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if replaced != text:
            self._doubt("replaced_characters", key)
        return replaced

    def _count_ranks(self, sample_id: Any) -> None:
        if type(sample_id) is int:
            self.ranks += sample_id <= self._last_sample_id
            self._last_sample_id = sample_id

    def _count_runs(self, steps: Any) -> None:
        """Records the number of timed runs, which only the list of the first decode step shows."""
        if isinstance(steps, list) and steps and isinstance(steps[0], list) and steps[0]:
            self.runs.add(len(steps[0]))


def plain_id(value: Any) -> str | None:
    """Returns an id as text, or None for an invalid id, such as a path. `5` and `"5"` are the same id."""
    if isinstance(value, str):
        plain = 0 < len(value) <= MAX_ID and value.isprintable() and value == value.strip()
        return value if plain and value not in (".", "..") and not set(value) & set("/\\") else None
    if not _is_number(value) or not math.isfinite(value) or value != int(value):
        return None
    return str(int(value)) if isinstance(value, int) or abs(value) < 2**53 else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
