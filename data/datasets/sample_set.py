"""The samples of one dataset: finds its source, draws rows, checks their images and assigns splits."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import DatasetError
from ..metrics import full_score_warning, get_metric
from ..samples import ModelInput, Sample
from ..schema import SPLITS
from .cache_split import cache_split
from .draw_order import draw_order
from .images import decode_image
from .records import Record, Rows
from .registry import DatasetSpec, dataset_spec
from .repeated_rows import unique_rows
from .source_split import ALL_ROWS, SourceSplit
from .sources import open_rows

_SKIPPED_NAMED = 100  # skipped rows listed in the manifest; all are counted
_CHUNK = 4096  # rows whose images are fetched and checked together


@dataclass(frozen=True)
class SkippedRow:
    """A row that `skip_bad` skipped, and the reason."""

    where: str
    reason: str


@dataclass(frozen=True)
class SampleSet:
    """The samples of one dataset, in the order of its files, and the settings they are run with."""

    name: str
    samples: tuple[Sample, ...]
    metric: str
    max_new_tokens: int
    style: str | None  # a style's name or an instruction, put with each question; None: nothing
    seed: int
    source: str
    images_root: Path | None  # absolute folder that image paths are relative to; None: the images need no folder
    answer_field: str | None = None  # read from answer objects; None: the answers are plain texts
    skipped: tuple[SkippedRow, ...] = ()
    warnings: tuple[str, ...] = ()
    duplicates: int = 0  # repeated rows, read once
    source_split: str | None = None  # split of the published dataset that all rows are known to be in
    columns: Mapping[str, str] = field(default_factory=dict)  # columns of renamed fields

    @property
    def fingerprint(self) -> str:
        """The sha256 of everything that outcomes and splits depend on, except the pixels."""
        digest = hashlib.sha256()
        for sample in self.samples:
            line = [sample.sample_id, sample.split, sample.question, list(sample.answers), sample.image_id]
            digest.update(json.dumps(line).encode() + b"\n")
        return digest.hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Returns what the manifest and `run.json` record about the dataset."""
        return {
            "metric": self.metric,
            "max_new_tokens": self.max_new_tokens,
            "style": self.style,
            "answer_field": self.answer_field,
            "source": self.source,
            "source_split": self.source_split,
            **({"columns": dict(self.columns)} if self.columns else {}),
            "images": None if self.images_root is None else str(self.images_root),
            "seed": self.seed,
            "samples": len(self.samples),
            "skipped": {"count": len(self.skipped), "first": [vars(row) for row in self.skipped[:_SKIPPED_NAMED]]},
            "duplicates": self.duplicates,
            "fingerprint": self.fingerprint,
        }


def load_samples(
    name: str,
    *,
    root: Path | None = None,
    source: str | Path | None = None,
    images: Path | None = None,
    source_split: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    metric: str | None = None,
    max_new_tokens: int | None = None,
    style: str | None = None,
    answer_field: str | None = None,
    columns: Mapping[str, str] | None = None,
    skip_bad: bool = False,
    check_images: bool = True,
    check_input: Callable[[ModelInput], None] = lambda _row: None,
) -> SampleSet:
    """Returns the samples of a dataset.

    Args:
        name: A known dataset (`DATASETS`), or any other name with a `source`.
        root: Folder with one folder per dataset, `root/<name>`; ignored if `source` is given.
        source: Folder with the official files or with Parquet files, a `.parquet` or `.jsonl` file, or a URL such as
            `hf://datasets/...`. Without `source` and `root`, the bundled files or the dataset's hub mirror are used.
        images: Folder that relative image paths start from; by default that of the source.
        source_split: Split of the published dataset to read, identified by folders, file names or a column; `all`:
            every row. None: the usual split of a known dataset, every row of any other.
        limit: Number of samples to draw; None: all. A smaller sample is part of a larger one with the same seed.
        seed: Seed of the draw and of the assignment to the cache's train, val and test.
        metric: Overrides the dataset's default, as do `max_new_tokens` and `answer_field` (answer or raw_answer).
        style: Overrides the dataset's default: what is put with each question in the prompt. "": nothing.
        columns: Column names of the fields (image, question, answers, question_id, image_id, split) that have another
            name in the source.
        skip_bad: Skip and report rows that cannot be used, instead of failing.
        check_images: Decode every drawn image once, so that a bad one is found now and not in the middle of a run.
        check_input: Raises DatasetError for a row that the model cannot run although its image is valid; only called
            with `check_images`, from several threads.

    Raises:
        DatasetError: The dataset, its files or a row cannot be used; the message names path and row.
    """
    spec = dataset_spec(name, has_source=source is not None)
    metric = get_metric(metric or spec.metric).name
    if limit is not None and limit < 1:
        raise DatasetError(f"dataset `{name}`: the number of samples must be at least 1, not {limit}.")
    if answer_field not in (None, "answer", "raw_answer"):
        raise DatasetError(f"dataset `{name}`: the answer field must be answer or raw_answer, not {answer_field!r}.")
    opened = open_rows(
        spec,
        root=root,
        source=source,
        images=images,
        split=_wanted_split(spec, source_split),
        answer_field=answer_field or spec.answer_field,
        columns=columns or {},
    )
    rows = opened.rows
    ids = rows.question_ids
    kept, bad = unique_rows(rows)
    duplicates = len(ids) - len(kept) - len(bad)
    faults = [*rows.faults, *((rows.where(row), error) for row, error in sorted(bad.items()))]
    if faults and not skip_bad:
        raise _refused(*faults[0]) from faults[0][1]
    order = (kept[i] for i in draw_order(name, [ids[row] for row in kept], seed))
    max_new_tokens = max_new_tokens or spec.max_new_tokens
    style = spec.style if style is None else style or None

    def check(record: Record, size: tuple[int, int]) -> None:
        check_input(ModelInput(record.question, style, max_new_tokens, *size))

    drawn: dict[int, tuple[Record, str]] = {}
    skipped = [SkippedRow(where, str(error)) for where, error in faults]
    for row, result in _examined(rows, order, limit, check if check_images else None):
        if isinstance(result, DatasetError):
            if not skip_bad:
                raise _refused(rows.where(row), result) from result
            skipped.append(SkippedRow(rows.where(row), str(result)))
        else:
            drawn[row] = result
    if not drawn:
        raise DatasetError(f"dataset `{name}`: no row of {opened.label} can be used: {skipped[0].reason}")
    samples = tuple(_sample(spec, *drawn[row], seed) for row in sorted(drawn))
    return SampleSet(
        name=name,
        samples=samples,
        metric=metric,
        max_new_tokens=max_new_tokens,
        style=style,
        seed=seed,
        source=opened.label,
        images_root=opened.images_root,
        answer_field=opened.answer_field,
        skipped=tuple(skipped),
        warnings=(*rows.notes, *_warnings(samples, metric, limit, duplicates, skipped)),
        duplicates=duplicates,
        source_split=rows.split,
        columns=columns or {},
    )


def _refused(where: str, error: DatasetError) -> DatasetError:
    place = "" if where in str(error) else f"{where}: "  # an image's error names only the image
    return DatasetError(f"{place}{error} Or skip such rows with --skip-bad.")


def _wanted_split(spec: DatasetSpec, name: str | None) -> SourceSplit | None:
    wanted = name or spec.source_split
    return None if wanted is None or wanted.lower() == ALL_ROWS else SourceSplit(wanted, requested=name is not None)


def _sample(spec: DatasetSpec, record: Record, image_id: str, seed: int) -> Sample:
    return Sample(
        sample_id=f"{spec.name}/{record.question_id}",
        dataset=spec.name,
        split=cache_split(image_id, seed),
        question=record.question,
        answers=record.answers,
        image_id=image_id,
        image=record.image,
    )


def _examined(
    rows: Rows, order: Iterator[int], limit: int | None, check: Callable[[Record, tuple[int, int]], None] | None
) -> Iterator[tuple[int, tuple[Record, str] | DatasetError]]:
    """Yields each row of `order` with its record and image id, or with its error, until `limit` rows are good.

    `check` is called with a record and its image's height and width; without it, no image is decoded.
    """
    size_of: dict[str, tuple[int, int]] = {}  # by sha256: an image that questions share is decoded once

    def examine(row: int) -> tuple[Record, str] | DatasetError:
        try:
            record = rows.record(row)
            if record.image_id is not None and check is None:
                return record, record.image_id
            data = record.image.read_bytes()
            sha256 = hashlib.sha256(data).hexdigest()
            if check is not None:
                if sha256 not in size_of:
                    height, width, _ = decode_image(data, record.image.ref).shape
                    size_of[sha256] = height, width
                check(record, size_of[sha256])
        except DatasetError as error:
            return error
        return record, record.image_id or sha256

    good = 0
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # Pillow releases the GIL while decoding
        while limit is None or good < limit:
            chunk = list(islice(order, _CHUNK if limit is None else min(_CHUNK, limit - good)))
            if not chunk:
                return
            if check is not None:
                rows.prefetch(chunk)
            for row, result in zip(chunk, pool.map(examine, chunk), strict=True):
                good += not isinstance(result, DatasetError)
                yield row, result


def _warnings(
    samples: Iterable[Sample], metric: str, limit: int | None, duplicates: int, skipped: list[SkippedRow]
) -> Iterator[str]:
    samples = tuple(samples)
    name = samples[0].dataset
    if limit is not None and len(samples) < limit:
        yield f"dataset `{name}` has {len(samples)} usable samples, fewer than the {limit} requested."
    empty = [split for split in SPLITS if not any(sample.split == split for sample in samples)]
    if empty:
        yield f"dataset `{name}`: no sample is in {' or '.join(empty)}: draw more samples, or use another seed."
    if duplicates:
        yield f"dataset `{name}`: {duplicates} repeated rows were read once."
    if skipped:
        yield f"dataset `{name}`: {len(skipped)} unusable rows were skipped; the first: {skipped[0].reason}"
    warning = full_score_warning(name, metric, (sample.answers for sample in samples))
    if warning is not None:
        yield warning
