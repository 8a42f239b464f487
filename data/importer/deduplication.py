"""Counts each question once per configuration, although rank files, padding and split files may repeat it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
import pyarrow as pa

from .reading import FileReading
from .report import Finding

QUESTION = ["dataset", "example_id"]
CONFIGURATION = ["dataset", "tier", "top_k", "num_blocks", "block_set"]
_STAGES = ["vision_ms", "prefill_ms", "decode_ms"]
MEASURED = ["accuracy", "answer", "latency_ms", *_STAGES, "vision_tokens", "output_tokens"]
_ORDER = ["file_index", "row"]
UNKNOWN_BLOCKS = "unknown"


def join_readings(readings: Sequence[FileReading]) -> pl.DataFrame:
    """Returns the rows of all files, with the configuration determined by each file's name and block list.

    `num_blocks` is the number of distinct blocks that ran; `block_set` names them, comma-separated.
    """
    read = [(index, reading) for index, reading in enumerate(readings) if reading.table_ipc is not None]
    if not read:
        return pl.DataFrame()
    tables = [reading.table() for _, reading in read]
    rows = pl.DataFrame(pl.from_arrow(pa.concat_tables(tables)))
    order = pl.Series("file_index", [index for index, _ in read], pl.Int32)
    rows = rows.with_columns(order.gather(np.repeat(np.arange(len(read)), [table.num_rows for table in tables])))
    return rows.join(_configurations(read), on="file_index", how="left")


def _configurations(read: Sequence[tuple[int, FileReading]]) -> pl.DataFrame:
    records = []
    for index, reading in read:
        file, blocks = reading.file, reading.blocks
        number = file.num_blocks if blocks is None else len(blocks)
        names = UNKNOWN_BLOCKS if blocks is None else ",".join(map(str, blocks))
        records.append((index, file.dataset, file.tier, file.top_k, number, names, file.name))
    schema = {
        "file_index": pl.Int32,
        "dataset": pl.String,
        "tier": pl.String,
        "top_k": pl.Int8,
        "num_blocks": pl.Int8,
        "block_set": pl.String,
        "file": pl.String,
    }
    return pl.DataFrame(records, schema=schema, orient="row")


def settle_old_schema(rows: pl.DataFrame) -> tuple[pl.DataFrame, list[Finding]]:
    """Removes the times of older files, which are not comparable with later ones; their decode time is a difference.

    If all rows have the older schema, T_total is comparable among them and kept.
    """
    old = rows.filter("old_schema")
    if old.is_empty():
        return rows, []
    alone = old.height == rows.height
    missing = _STAGES if alone else ["latency_ms", *_STAGES]
    rows = rows.with_columns(pl.when("old_schema").then(None).otherwise(pl.col(name)).alias(name) for name in missing)
    return rows, _per_file(old, "older_schema_alone" if alone else "older_schema")


def settle_questions(rows: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame, list[Finding]]:
    """Returns the rows that agree on the content of their question, one row per question, and the disagreements.

    The most frequent text and image of a question count; of equally frequent ones the first.
    """
    for name in ("question", "image_id"):
        rows = rows.join(_most_common(rows, name), on=QUESTION, how="left")
    differs = [pl.col(name).ne(pl.col(f"settled_{name}")).fill_null(False) for name in ("question", "image_id")]
    conflict = pl.any_horizontal(differs)
    findings = _per_file(rows.filter(conflict), "conflicting_question", example="example_id")
    rows = rows.filter(~conflict).sort(_ORDER)
    questions = rows.group_by(QUESTION, maintain_order=True).agg(
        pl.col("settled_question").first().alias("question"),
        pl.col("settled_image_id").first().alias("image_id"),
        pl.col("answers").drop_nulls().first(),
    )
    compared = rows.join(questions.select(*QUESTION, settled_answers="answers"), on=QUESTION, how="left")
    other_answers = compared.filter(pl.col("answers").is_not_null() & (pl.col("answers") != pl.col("settled_answers")))
    findings += _per_file(other_answers, "differing_answers", example="example_id")
    rows = rows.drop("question", "image_id", "answers", "settled_question", "settled_image_id", "old_schema")
    return rows, questions.sort(QUESTION), findings


def count_once(rows: pl.DataFrame) -> tuple[pl.DataFrame, list[Finding]]:
    """Keeps one measurement of each question in each configuration: the first that has accuracy and latency.

    Otherwise the first with an accuracy, otherwise the first. Merged files precede rank files, so the merged row is
    kept if leftover rank files repeat it. Values of two measurements are never combined.
    """
    key = [*CONFIGURATION, "example_id"]
    lacking = 2 * pl.col("accuracy").is_null().cast(pl.Int8) + pl.col("latency_ms").is_null().cast(pl.Int8)
    rows = rows.with_columns(lacking.alias("lacking")).sort([*key, "lacking", *_ORDER])
    rows = rows.with_columns(pl.int_range(pl.len()).over(key).alias("place"))
    kept = rows.filter(pl.col("place") == 0).drop("place", "lacking")
    others = rows.filter(pl.col("place") > 0)
    if others.is_empty():
        return kept, []
    others = others.join(kept.select(*key, "file", *MEASURED), on=key, how="left", suffix="_kept")
    same = pl.all_horizontal(pl.col(name).eq_missing(pl.col(f"{name}_kept")) for name in MEASURED)
    elsewhere = pl.col("file") != pl.col("file_kept")
    findings = _per_file(others.filter(same & elsewhere), "leftover_rows")
    findings += _per_file(others.filter(~(same & elsewhere)), "repeats", example="example_id")
    disagree = pl.any_horizontal((pl.col(n) != pl.col(f"{n}_kept")).fill_null(False) for n in ("answer", "accuracy"))
    return kept, findings + _per_file(others.filter(disagree), "differing_repeats", example="example_id")


def choose_blocks(rows: pl.DataFrame) -> tuple[pl.DataFrame, list[Finding]]:
    """Keeps one block set per configuration, so that a setting is unambiguous; reports the rows of other sets.

    Of several sets, the one with the most rows for this `num_blocks` in the whole directory is kept, so that all
    configurations that have it keep the same one; unknown blocks come last.
    """
    setting = ["dataset", "tier", "top_k", "num_blocks"]
    unknown = pl.col("block_set") == UNKNOWN_BLOCKS
    votes = rows.group_by("num_blocks", "block_set").agg(pl.len().alias("votes"))
    sets = rows.select(*setting, "block_set").unique().join(votes, on=["num_blocks", "block_set"])
    chosen = (
        sets.with_columns(unknown.alias("unknown"))
        .sort([*setting, "unknown", "votes", "block_set"], descending=[*[False] * 5, True, False])
        .group_by(setting, maintain_order=True)
        .agg(pl.col("block_set").first().alias("chosen_set"))
    )
    rows = rows.join(chosen, on=setting, how="left")
    other = rows.filter(pl.col("block_set") != pl.col("chosen_set"))
    findings = []
    for file, part in other.group_by("file"):
        sets_text = f"[{part['block_set'][0]}] instead of [{part['chosen_set'][0]}]"
        findings.append(Finding("other_blocks", str(file[0]), part.height, sets_text))
    return rows.filter(pl.col("block_set") == pl.col("chosen_set")).drop("chosen_set"), findings


def _most_common(rows: pl.DataFrame, name: str) -> pl.DataFrame:
    counted = (
        rows.filter(pl.col(name).is_not_null())
        .group_by(*QUESTION, name)
        .agg(pl.len().alias("count"), pl.struct(_ORDER).min().alias("first"))
        .sort([*QUESTION, "count", pl.col("first").struct.field("file_index"), pl.col("first").struct.field("row")],
              descending=[False, False, True, False, False])
    )  # fmt: skip
    return counted.group_by(QUESTION, maintain_order=True).agg(pl.col(name).first().alias(f"settled_{name}"))


def _per_file(rows: pl.DataFrame, code: str, example: str | None = None) -> list[Finding]:
    """Returns one finding per file in `rows`."""
    findings = []
    for (file,), part in rows.sort(_ORDER).group_by("file", maintain_order=True):
        examples = () if example is None else tuple(part[example].unique(maintain_order=True).head(3).to_list())
        findings.append(Finding(code, str(file), part.height, "", examples))
    return findings
