"""The live executor for a cache: the model that made it, with the cache's own knobs, encoder, scores and samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...controllers.budget_encoder import read_budget_encoder
from ...data.budgets import normalise_budgets
from ...data.cache.reader import Cache, open_cache
from ...data.datasets.image_refs import ImageRoots, image_from_ref
from ...data.errors import CacheError, CacheMismatch, CheckpointError, DatasetError
from ...data.samples import Sample
from ...data.tasks import Task, recorded_task
from ..execution.knob_model import KnobModel
from ..models.loading import LoadedModel, load_model
from .live import LiveExecutor

Factory = Callable[[Sequence[str]], tuple[LiveExecutor, Mapping[str, Sample]]]


def live_factory(
    cache_path: Path,
    *,
    model: str | None = None,
    revision: str | None = None,
    device: str = "cuda",
    dtype: str = "auto",
    images: Path | None = None,
    sources: Mapping[str, Path] | None = None,
) -> Factory:
    """Returns a function that loads the model and makes the executor and the samples of a live validation.

    Args:
        model: bundled name, directory or hub id; None: the name that the cache records.
        dtype: `auto`: the cache's; a different one is an error if the cache records its dtype.
        images: folder that image paths are relative to, and where Parquet files with images are searched first; by
            default the folders that the cache records.
        sources: dataset name -> the current location of its files; by default the recorded one.

    Raises (when the returned function is called):
        CacheError: the cache lacks something that a live run needs. CacheMismatch: it was made by another model or
            with another dtype.
        DatasetError: an image is missing from the recorded location.
    """

    def make(sample_ids: Sequence[str]) -> tuple[LiveExecutor, Mapping[str, Sample]]:
        cache = open_cache(cache_path, tokens=False)
        _check_live(cache)
        kept = cache.manifest.dtype
        if dtype != "auto" and kept is not None and dtype != kept:
            raise CacheMismatch(f"{cache_path} was made in {kept}, but --dtype is {dtype}: leave --dtype out.")
        samples = samples_of(cache, sample_ids, images, sources or {})
        for sample in samples.values():  # report a missing one now, not in the middle of the run
            sample.image.read_bytes()
        name = model or cache.manifest.model_name
        try:
            loaded = load_model(name, revision=revision, device=device, dtype=kept or dtype)
        except CheckpointError as error:
            if model is not None:
                raise
            raise CheckpointError(
                f"{error} The cache names this model; give its present location with --model."
            ) from error
        _check_model(cache, loaded)
        return LiveExecutor(knob_model_of(cache, loaded)), samples

    return make


def knob_model_of(cache: Cache, loaded: LoadedModel) -> KnobModel:
    """Returns the model with the cache's knobs."""
    manifest = cache.manifest
    assert manifest.importance is not None, "checked by _check_live"
    assert cache.budget_encoder_path is not None, "checked by _check_live"
    return KnobModel(
        loaded,
        space=manifest.space,
        importance=manifest.importance,
        encoder=read_budget_encoder(cache.budget_encoder_path, manifest.d_model, error=CacheError),
        tasks=tasks_of(cache),
        budgets_ms=normalise_budgets(manifest.budgets_ms),
    )


def tasks_of(cache: Cache) -> dict[str, Task]:
    """Returns the task of each dataset that the cache describes. Raises CacheError for one without metric or limit."""
    tasks = {}
    for name in cache.manifest.datasets or {}:
        task = recorded_task(cache.manifest, name)
        if task is None:
            raise CacheError(
                f"{cache.path / 'cache.json'} names no metric or no token limit for dataset `{name}`: add "
                f"`datasets.{name}.metric` and `max_new_tokens`, or recompute the cache."
            )
        tasks[name] = task
    return tasks


def samples_of(
    cache: Cache, sample_ids: Sequence[str], images: Path | None, sources: Mapping[str, Path]
) -> dict[str, Sample]:
    """Returns the samples as precompute ran them. Raises CacheError if a column that a live run needs is missing."""
    table = cache.samples
    missing = [name for name in ("question", "answers", "image_ref") if name not in table.columns]
    if missing:
        raise CacheError(f"{cache.path}/samples lacks the columns {missing}, which a live run needs.")
    records: dict[str, Any] = {name: {} for name in table["dataset"].unique()} | (cache.manifest.datasets or {})
    for name, source in sources.items():
        if name not in records:
            raise DatasetError(
                f"--dataset {name}: {cache.path} has no such dataset, only {', '.join(sorted(records))}."
            )
        if not source.exists():
            raise DatasetError(f"--dataset {name}: {source} does not exist.")
    roots = {
        name: ImageRoots.recorded(name, record, source=sources.get(name), images=images)
        for name, record in records.items()
    }
    samples: dict[str, Sample] = {}
    for sample_id in sample_ids:
        row: dict[str, Any] = table.row(cache.sample_index[sample_id], named=True)
        if row["question"] is None or not row["answers"] or row["image_ref"] is None:
            raise CacheError(
                f"{cache.path}/samples: {sample_id} lacks the question, answers or image_ref that a live run needs."
            )
        samples[sample_id] = Sample(
            sample_id,
            row["dataset"],
            row["split"],
            row["question"],
            tuple(row["answers"]),
            row.get("image_id") or row["image_ref"],
            image_from_ref(row["image_ref"], roots[row["dataset"]]),
        )
    return samples


def _check_live(cache: Cache) -> None:
    manifest = cache.manifest
    if cache.budget_encoder_path is None:
        raise CacheError(
            f"{cache.path} has no budget_encoder.safetensors: its latency tokens cannot be reproduced, so --live "
            "is refused. Validate without --live, or make the cache with `knobctl precompute`."
        )
    if manifest.importance is None:
        raise CacheError(
            f"{cache.path / 'cache.json'} has no importance scores, so which blocks run is unknown: validate without "
            "--live."
        )
    if manifest.space.insertion_positions == (None,):
        raise CacheError(f"{cache.path} holds imported results without insertion positions: validate without --live.")


def _check_model(cache: Cache, loaded: LoadedModel) -> None:
    wanted = cache.manifest.fingerprint
    if wanted is not None and wanted != loaded.fingerprint:
        raise CacheMismatch(
            f"{cache.path} was made with {cache.manifest.model_name} (fingerprint {wanted[:12]}), but {loaded.name} "
            f"has {loaded.fingerprint[:12]}: name that model with --model, or run `knobctl precompute` with this one."
        )
