"""The files of a cache as they are published: without text of the datasets and paths of this machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..cards import CARD_NAME, is_generated, published, read_card
from ..errors import CacheError
from ..hub.upload import Publication
from ..schema import latency_tokens_schema, outcomes_schema, samples_schema
from .card import PRIVATE_COLUMNS, cache_card
from .location import FILE_PATTERNS
from .manifest import MANIFEST_NAME, RUN_NAME, FileRecord, Manifest
from .parts import (
    COMPANION_KEY,
    ENCODER_NAME,
    OUTCOMES,
    SAMPLES,
    TABLES,
    TOKENS,
    open_part,
    parquet_errors,
    part_paths,
    sha256_file,
)
from .verify import UNLISTED, verify_cache
from .writer import conform, parquet_bytes


def cache_publication(directory: Path, repo_id: str, scratch: Path, *, include_questions: bool = False) -> Publication:
    """Returns the files to publish, those that differ from the cache's own written to `scratch`.

    `cache.json` lists the published files with their digests and names neither sources nor image folders of the
    datasets, which are paths of this machine. Without `include_questions` the columns of `PRIVATE_COLUMNS` are left
    out; columns that are not part of the format always are.

    Raises:
        CacheError: the cache is incomplete or damaged.
    """
    problems = verify_cache(directory)
    problems = [problem for problem in problems if problem.message != UNLISTED]  # a cache of another program
    if problems:
        raise CacheError("\n".join(str(problem) for problem in problems))
    manifest = Manifest.read(directory)
    files: dict[str, Path] = {}
    records: list[FileRecord] = []
    left_out: dict[str, list[str]] = {}
    for name in (RUN_NAME, ENCODER_NAME):
        if (directory / name).is_file():
            files[name] = directory / name
            records.append(FileRecord(name, None, sha256_file(directory / name)))
    digests: dict[str, str] = {}
    for table in TABLES:  # samples last: its files record the digests of the others
        for path in part_paths(directory, table):
            relative = f"{table}/{path.name}"
            private = () if include_questions else PRIVATE_COLUMNS[table]
            file, rows, dropped = _public_part(directory, path, table, manifest.d_model, private, digests, scratch)
            files[relative] = file
            digests[relative] = sha256_file(file)
            records.append(FileRecord(relative, rows, digests[relative]))
            left_out[table] = sorted({*left_out.get(table, []), *dropped})
    public = replace(manifest, files=tuple(records), datasets=_without_paths(manifest.datasets))
    files[MANIFEST_NAME] = _write(scratch / MANIFEST_NAME, public.to_bytes())
    text = _card(directory, public, include_questions)
    files[CARD_NAME] = _write(scratch / CARD_NAME, published(text, repo_id).encode())
    return Publication(
        "dataset",
        dict(sorted(files.items())),
        (MANIFEST_NAME, *FILE_PATTERNS),
        {table: columns for table, columns in left_out.items() if columns},
        _notes(manifest, text),
    )


def _public_part(
    directory: Path,
    path: Path,
    table: str,
    d_model: int,
    private: tuple[str, ...],
    digests: dict[str, str],
    scratch: Path,
) -> tuple[Path, int, list[str]]:
    """Returns the file to publish for a part, its rows, and the columns that it lacks."""
    schemas = {SAMPLES: samples_schema(d_model), OUTCOMES: outcomes_schema(), TOKENS: latency_tokens_schema(d_model)}
    required, optional = schemas[table]
    known = {*required.names, *optional.names}
    with open_part(directory, path) as file, parquet_errors(path):
        names, rows = file.schema_arrow.names, file.metadata.num_rows
        dropped = [name for name in names if name in private or name not in known]
        if not dropped and (table != SAMPLES or _companions_unchanged(file.schema_arrow, path.name, digests)):
            return path, rows, dropped
        content = file.read(columns=[name for name in names if name not in dropped])
    content = conform(content, (required, optional), table)
    if table == SAMPLES:
        companions = {name: digests.get(f"{name}/{path.name}") for name in (TOKENS, OUTCOMES)}
        content = content.replace_schema_metadata(
            {COMPANION_KEY + name.encode(): digest for name, digest in companions.items() if digest is not None}
        )
    return _write(scratch / table / path.name, parquet_bytes(content, table)), rows, dropped


def _companions_unchanged(schema: pa.Schema, part: str, digests: dict[str, str]) -> bool:
    recorded = {name: (schema.metadata or {}).get(COMPANION_KEY + name.encode()) for name in (TOKENS, OUTCOMES)}
    return all(digest is None or digest.decode() == digests.get(f"{name}/{part}") for name, digest in recorded.items())


def _without_paths(datasets: dict[str, Any] | None) -> dict[str, Any] | None:
    """Returns the datasets' records without paths of this machine, and without the rows that were skipped."""
    if datasets is None:
        return None

    def kept(name: str, value: object) -> bool:
        return name not in ("images", "skipped") and not (name == "source" and "://" not in str(value))

    return {
        dataset: {name: value for name, value in record.items() if kept(name, value)}
        for dataset, record in datasets.items()
    }


def _card(directory: Path, manifest: Manifest, include_questions: bool) -> str:
    """Returns the card that the user has changed, else one of what is published."""
    path = directory / CARD_NAME
    if path.is_file() and not is_generated(path):
        text = read_card(path)
        if text is None:
            raise CacheError(f"{path} is too large for a card or is not UTF-8 text")
        return text
    return cache_card(directory, manifest, public=not include_questions)


def _notes(manifest: Manifest, card: str) -> list[str]:
    from huggingface_hub import DatasetCard

    notes = []
    if Path(manifest.model_name).is_absolute():
        notes.append(f"the cache names its model by a path of this machine, {manifest.model_name}: it is published too")
    if not DatasetCard(card, ignore_metadata_errors=True).data.get("license"):
        notes.append(f"{CARD_NAME} states no licence: add `license:` to its first lines")
    return notes


def _write(path: Path, data: bytes | memoryview) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path
