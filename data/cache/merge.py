"""Merges the shards of one run into one cache, whose rows do not depend on the number of shards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import CacheError, CacheMismatch
from ..files.atomic import DISK, Disk
from ..schema import SPLITS
from .manifest import MANIFEST_NAME, Manifest
from .parts import ENCODER_NAME, SAMPLES, part_paths, read_part
from .reader import Cache, open_cache
from .run_record import differences, read_run
from .shard import Shard
from .writer import CacheWriter

# Fields that may differ between shards; all others in the manifests must be equal.
_OWN = ("files", "created_at", "created_by", "latency_check", "datasets", "extra")
_OWN_SOURCE = ("source", "images", "skipped")  # the same in a dataset's record: each machine has its own paths
MAX_MISSING = 8  # named in a message


def merge_caches(sources: Sequence[Path], out: Path, *, disk: Disk = DISK) -> Manifest:
    """Merges complete shards of one run into the cache `out`. Repeating the call after a kill resumes it.

    Parts keep their bytes. Each source is opened in full first, so that no damaged data is merged.

    Raises:
        CacheMismatch: The shards are not of one run.
        CacheError: A shard is missing, given twice, or incomplete.
    """
    if not sources:
        raise CacheError("no shards to merge: give the directories that `precompute --shard` wrote")
    sources = [Path(source) for source in sources]
    runs = [read_run(source) for source in sources]
    order = _one_of_each(sources, [shard for _, shard in runs])
    caches = [open_cache(source, tokens=False) for source in sources]
    for index in order[1:]:
        differing = list(differences(runs[order[0]][0], runs[index][0]))
        differing += list(differences(_shared(caches[order[0]].manifest), _shared(caches[index].manifest)))
        if differing:
            raise CacheMismatch(
                f"{sources[order[0]]} and {sources[index]} are not of one run: {'; '.join(differing[:8])}"
            )
    caches = [caches[index] for index in order]
    _no_sample_twice(caches)
    encoder = _encoder(caches)
    with CacheWriter(Path(out), runs[order[0]][0], disk=disk) as writer:
        if writer.complete:
            return Manifest.read(Path(out))
        committed = {path.name for path in part_paths(Path(out), SAMPLES)}
        for cache in caches:
            for path in part_paths(cache.path, SAMPLES):
                if path.name not in committed:
                    writer.adopt_part(cache.path, path.name)
        return writer.finish(_merged_manifest(caches), encoder)


def _one_of_each(sources: Sequence[Path], shards: Sequence[Shard]) -> list[int]:
    """Returns the positions of shards 0, 1, ... in `sources`."""
    count = shards[0].count
    for source, shard in zip(sources, shards, strict=True):
        if shard.count != count:
            raise CacheMismatch(f"{sources[0]} is shard {shards[0]}, but {source} is shard {shard}")
    times = Counter(shard.index for shard in shards)
    twice = [index for index, number in times.items() if number > 1]
    if twice:
        names = [str(s) for s, shard in zip(sources, shards, strict=True) if shard.index == twice[0]]
        raise CacheError(f"shard {twice[0]}/{count} is given {times[twice[0]]} times: {', '.join(names)}")
    missing = [f"shard {index}/{count}" for index in range(count) if index not in times]
    for source, shard in zip(sources, shards, strict=True):
        if not (source / MANIFEST_NAME).is_file():
            missing.append(f"the rest of shard {shard} in {source}, which has {_num_samples(source)} samples so far")
    if missing:
        more = f"; and {len(missing) - MAX_MISSING} more" if len(missing) > MAX_MISSING else ""
        raise CacheError(
            f"missing: {'; '.join(missing[:MAX_MISSING])}{more}. Run `knobctl precompute --shard` for them first."
        )
    return sorted(range(len(sources)), key=lambda place: shards[place].index)


def _num_samples(cache: Path) -> int:
    """Returns the number of samples in committed parts."""
    paths = part_paths(cache, SAMPLES)
    return sum(read_part(cache, path, ["sample_id"]).num_rows for path in paths)


def _shared(manifest: Manifest) -> dict[str, Any]:
    return {name: value for name, value in manifest.to_dict().items() if name not in (*_OWN, *manifest.extra)}


def _no_sample_twice(caches: Sequence[Cache]) -> None:
    seen: dict[str, Path] = {}
    parts: dict[str, Path] = {}
    for cache in caches:
        for sample_id in cache.sample_ids:
            if sample_id in seen:
                raise CacheError(f"sample {sample_id!r} is in {seen[sample_id]} and in {cache.path}")
            seen[sample_id] = cache.path
        for path in part_paths(cache.path, SAMPLES):
            if path.name in parts:
                raise CacheError(f"part {path.name} is in {parts[path.name]} and in {cache.path}")
            parts[path.name] = cache.path


def _encoder(caches: Sequence[Cache]) -> bytes | None:
    found = [None if cache.budget_encoder_path is None else cache.budget_encoder_path.read_bytes() for cache in caches]
    for cache, data in zip(caches, found, strict=True):
        if data != found[0]:
            raise CacheMismatch(f"{caches[0].path} and {cache.path} have different budget encoders ({ENCODER_NAME})")
    return found[0]


def _merged_manifest(caches: Sequence[Cache]) -> Manifest:
    first = caches[0].manifest
    if len(caches) == 1:
        return first
    shards = [
        {"latency_check": cache.manifest.latency_check, "created_at": cache.manifest.created_at, **cache.manifest.extra}
        for cache in caches
    ]
    return replace(
        first,
        datasets=_merged_datasets([cache.manifest.datasets for cache in caches]),
        latency_check=None,
        extra={"shards": shards},
        files=None,
    )


def _merged_datasets(records: Sequence[dict[str, Any] | None]) -> dict[str, Any] | None:
    """Adds up the rows of each split. Other entries must be equal; paths (`_OWN_SOURCE`) that differ become None.

    Returns None when a shard records no datasets.
    """
    if any(record is None for record in records):
        return None
    merged: dict[str, Any] = {}
    for record in records:
        for name, entries in (record or {}).items():
            into = merged.setdefault(name, {})
            for key, value in entries.items():
                if key in SPLITS:
                    into[key] = into.get(key, 0) + value
                elif key in _OWN_SOURCE:
                    if into.setdefault(key, value) != value:
                        into[key] = None
                elif into.setdefault(key, value) != value:
                    raise CacheMismatch(f"dataset {name!r}: {key} is {into[key]!r} in one shard, {value!r} in another")
    return merged
