"""Rows with mapped columns, and Parquet types that are read as text."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import polars as pl

from ..errors import DatasetError
from ..files.bounded_json import parse_json


def with_fields(entry: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """Returns a JSON row with renamed fields under their usual names."""
    if not columns:
        return dict(entry)
    hidden = {*columns, *(["answer"] if "answers" in columns else [])}
    kept = {name: value for name, value in entry.items() if name not in hidden}
    return kept | {field: entry[column] for field, column in columns.items() if column in entry}


def check_columns(columns: Mapping[str, str], present: Collection[str], where: object) -> None:
    """Raises DatasetError if a column that --column names is not `present`."""
    for field, column in columns.items():
        if column not in present:
            raise DatasetError(
                f"{where} has no column `{column}`, which --column names for `{field}`; its columns are "
                f"{sorted(present)}."
            )


def as_text(kind: Any) -> Any:
    """Returns the polars type that a column is read as: categories, enums and binary text become text."""
    if isinstance(kind, pl.Categorical | pl.Enum | pl.Binary):
        return pl.String()
    if isinstance(kind, pl.List | pl.Array):
        return pl.List(as_text(kind.inner))
    if isinstance(kind, pl.Struct):
        return pl.Struct([pl.Field(field.name, as_text(field.dtype)) for field in kind.fields])
    return kind


def text_column(column: str, kind: Any, labels: list[str] | None) -> pl.Expr:
    """Returns an expression for the column with class labels replaced by their names and text types by text."""
    target, source = as_text(kind), pl.col(column)
    if labels is not None:
        numbers = list(range(len(labels)))
        if isinstance(target, pl.List):
            return source.cast(target).list.eval(
                pl.element().replace_strict(numbers, labels, default=None, return_dtype=pl.String)
            )
        return source.replace_strict(numbers, labels, default=None, return_dtype=pl.String)
    if pl.Float32 in (kind, getattr(kind, "inner", None)):  # cast through text, so 0.1 stays 0.1
        texts = pl.List(pl.String) if isinstance(target, pl.List) else pl.String()
        target = pl.List(pl.Float64) if isinstance(target, pl.List) else pl.Float64()
        return source.cast(texts).cast(target)
    return source.cast(target)


def class_labels(location: str, column: str, kind: Any) -> list[str] | None:
    """Returns the names of a ClassLabel column, which Hugging Face `datasets` writes into a Parquet file's metadata.

    None if the column does not hold whole numbers or the file has no names for it.
    """
    if not as_text(kind).is_integer() and not getattr(as_text(kind), "inner", pl.String()).is_integer():
        return None
    text = pl.read_parquet_metadata(location).get("huggingface")
    if text is None:
        return None
    feature = parse_json(text.encode(), f"{location}: metadata `huggingface`", error=DatasetError)
    for key in ("info", "features", column):
        feature = feature.get(key) if isinstance(feature, Mapping) else None
    if isinstance(feature, list):  # older files write a list of labels as [feature], newer ones as {"feature": ...}
        feature = feature[0] if feature else None
    elif isinstance(feature, Mapping):
        feature = feature.get("feature", feature)
    names = feature.get("names") if isinstance(feature, Mapping) and feature.get("_type") == "ClassLabel" else None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None
