"""Writes a cache part by part. Committed parts survive a kill at any moment; uncommitted ones leave no trace.

A part is up to three files with the same name, one per table. They are written under temporary names, synced and
renamed; the `samples` file is renamed last, and its presence is the commit. `cache.json` is written after all parts.
"""

from __future__ import annotations

import errno
import hashlib
import io
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..cards import write_card
from ..errors import CacheError
from ..files.atomic import DISK, Disk, remove_temporaries, sync_directory, write_atomically, write_temporary
from ..files.lock import DirectoryLock
from ..schema import latency_tokens_schema, outcomes_schema, samples_schema
from .card import cache_card
from .manifest import MANIFEST_NAME, RUN_NAME, FileRecord, Manifest
from .parts import (
    COMPANION_KEY,
    ENCODER_NAME,
    OUTCOMES,
    SAMPLES,
    TABLES,
    TOKENS,
    companion_digests,
    open_part,
    part_paths,
    read_part,
    sha256_file,
)
from .run_record import begin_run
from .shard import Shard

ZSTD_LEVEL = 3
COMPACT_ZSTD_LEVEL = 19
# Numbers that rarely repeat: a dictionary of them would only cost time and space.
_VECTORS = ("token", "language_feature", "latency_runs_ms")
_TIMES = ("latency_ms", "latency_std_ms", "vision_ms", "prefill_ms", "decode_ms")


class CacheWriter:
    """The only writer of a directory while its context lasts: holds its lock and has checked or written `run.json`.

    Args:
        out: The directory, created if necessary. If the same run started it, the run is resumed.
        run: What the rows depend on (model fingerprint, samples, knob space, ...), a JSON object. None: not known yet;
            the caller passes it to `begin` before it writes anything.
        shard: The share of the samples written here. Parts are named by it, so shards merge without collisions.
        compact: Make files as small as possible, which takes several times as long to write.
        disk: System calls, which tests replace.

    Raises:
        CacheError: The directory is locked, read-only or contains something else, or the disk is full.
        CacheMismatch: The directory contains another run.
    """

    def __init__(
        self,
        out: Path,
        run: Mapping[str, Any] | None = None,
        *,
        shard: Shard | None = None,
        compact: bool = False,
        disk: Disk = DISK,
    ) -> None:
        self.out = Path(out)
        self.shard = shard or Shard()
        self.resumed = False
        self._run = run
        self._compact = compact
        self._disk = disk
        self._exit = ExitStack()

    def __enter__(self) -> CacheWriter:
        with ExitStack() as stack:
            with self.disk_errors():
                if not self.out.exists():
                    stack.callback(self._remove_empty)
                self._disk.make_directory(self.out)
                stack.enter_context(DirectoryLock(self.out, CacheError))
                if self._run is not None:
                    self.begin(self._run)
            self._exit = stack.pop_all()
        return self

    def begin(self, run: Mapping[str, Any]) -> None:
        """Writes `run.json`, or checks that the directory was started with the same run."""
        with self.disk_errors():
            self.resumed = begin_run(self._disk, self.out, run, self.shard)
            self._remove_uncommitted()

    def _remove_empty(self) -> None:
        """Removes the directory of a run that ended before it began."""
        with suppress(OSError):
            self.out.rmdir()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exit.__exit__(kind, error, trace)

    @property
    def complete(self) -> bool:
        """Whether `cache.json` exists, which means that the cache is complete."""
        return (self.out / MANIFEST_NAME).is_file()

    def done_samples(self) -> set[str]:
        """Returns the ids of all samples in committed parts."""
        done: set[str] = set()
        for path in part_paths(self.out, SAMPLES):
            ids = read_part(self.out, path, ["sample_id"]).column("sample_id").to_pylist()
            twice = done.intersection(ids)
            if twice:
                raise CacheError(f"{path} contains sample {min(twice)!r}, which is also in another part")
            done.update(ids)
        return done

    def write_part(self, samples: pa.Table, outcomes: pa.Table, tokens: pa.Table | None) -> str:
        """Encodes and commits the rows of some samples: see `encode_part` and `commit_part`."""
        return self.commit_part(encode_part(samples, outcomes, tokens, compact=self._compact))

    def commit_part(self, files: Mapping[str, bytes | memoryview]) -> str:
        """Commits the files of `encode_part`, all or none, and returns the part's name."""
        self._refuse_if_complete()
        part = self.next_part()
        with self.disk_errors():
            self._commit(part, files)
        return part

    def adopt_part(self, source: Path, part: str, name: str | None = None) -> None:
        """Commits a part of another cache with its bytes unchanged: hard links where possible, else copies.

        Args:
            name: the part's name here; None: as in `source`.
        """
        self._refuse_if_complete()
        paths = {table: source / table / part for table in TABLES if (source / table / part).is_file()}
        with self.disk_errors():
            for table in TABLES:
                self._disk.make_directory(self.out / table)
            for table, path in paths.items():  # in the order of TABLES: samples, the commit, last
                target = self.out / table / (name or part)
                try:
                    self._disk.link(path, target)
                except OSError as cause:
                    if cause.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EACCES):
                        raise
                    write_atomically(target, path.read_bytes(), self._disk)
                sync_directory(target.parent, self._disk)

    def finish(self, manifest: Manifest, budget_encoder: bytes | None = None) -> Manifest:
        """Writes the encoder, the card and then `cache.json`, with the digest of every file but the card's.

        Returns the manifest as written.

        Args:
            manifest: Without `files`, which are filled in.
            budget_encoder: The bytes of `budget_encoder.safetensors`; None writes no such file.

        Raises:
            CacheError: A file differs from what was committed, or the disk is full.
        """
        with self.disk_errors():
            if budget_encoder is not None:
                write_atomically(self.out / ENCODER_NAME, budget_encoder, self._disk)
            records = [self._record(RUN_NAME)]
            if (self.out / ENCODER_NAME).is_file():
                records.append(self._record(ENCODER_NAME))
            for name in reversed(TABLES):
                for path in part_paths(self.out, name):
                    rows = open_part(self.out, path).metadata.num_rows
                    records.append(self._record(f"{name}/{path.name}", rows))
            self._check_companions({record.path: record.sha256 for record in records})
            manifest = replace(manifest, files=tuple(records))
            write_card(self.out, cache_card(self.out, manifest), self._disk)
            write_atomically(self.out / MANIFEST_NAME, manifest.to_bytes(), self._disk)
        return manifest

    def _record(self, relative: str, rows: int | None = None) -> FileRecord:
        return FileRecord(relative, rows, sha256_file(self.out / relative))

    def _check_companions(self, digests: Mapping[str, str]) -> None:
        for path in part_paths(self.out, SAMPLES):
            for relative, digest in companion_digests(self.out, path).items():
                if digests.get(relative) != digest:
                    state = "changed" if relative in digests else "removed"
                    raise CacheError(
                        f"{self.out / relative} has been {state} since it was written. Remove {path} and run the same "
                        "command again, which computes its samples again."
                    )

    def _refuse_if_complete(self) -> None:
        if self.complete:
            raise CacheError(f"{self.out} is already complete: nothing more can be written to it")

    def _commit(self, part: str, blobs: Mapping[str, bytes | memoryview]) -> None:
        temporaries: dict[str, Path] = {}
        try:
            for name in TABLES:
                self._disk.make_directory(self.out / name)
                if name in blobs:
                    temporaries[name] = write_temporary(self.out / name, part, blobs[name], self._disk)
            for name, temporary in list(temporaries.items()):  # in the order of TABLES: samples, the commit, last
                self._disk.replace(temporary, self.out / name / part)
                del temporaries[name]
                sync_directory(self.out / name, self._disk)
        except OSError:
            for temporary in temporaries.values():
                self._disk.unlink(temporary)
            if not (self.out / SAMPLES / part).exists():
                self._remove_part(part)
            raise

    def _remove_part(self, part: str) -> None:
        for name in TABLES:
            self._disk.unlink(self.out / name / part)

    def _remove_uncommitted(self) -> None:
        """Removes temporary files, and the files of parts whose commit was interrupted."""
        remove_temporaries(self.out, self._disk)
        if self.complete:
            return
        committed = {path.name for path in part_paths(self.out, SAMPLES)}
        for name in TABLES:
            if (self.out / name).is_dir():
                remove_temporaries(self.out / name, self._disk)
                for path in part_paths(self.out, name):
                    if path.name not in committed:
                        self._disk.unlink(path)

    def next_part(self) -> str:
        """Returns the name of the next part."""
        prefix = f"part-{self.shard.index:04d}-"
        numbers = [
            int(path.stem[len(prefix) :]) for path in part_paths(self.out, SAMPLES) if path.name.startswith(prefix)
        ]
        return f"{prefix}{max(numbers, default=-1) + 1:06d}.parquet"

    @contextmanager
    def disk_errors(self) -> Iterator[None]:
        """Turns OSErrors into CacheErrors that say what the user can do."""
        try:
            yield
        except OSError as cause:
            resume = "No committed part is lost: run the same command again to resume."
            if cause.errno in (errno.ENOSPC, errno.EDQUOT):
                raise CacheError(
                    f"{self.out}: the disk is full or the quota is exhausted. Free some space. {resume}"
                ) from cause
            if cause.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise CacheError(
                    f"{self.out} cannot be written ({cause.strerror}): choose another directory"
                ) from cause
            if cause.errno in (errno.EEXIST, errno.ENOTDIR):
                raise CacheError(f"{self.out} is not a directory: choose another name") from cause
            raise CacheError(f"{self.out}: {cause.strerror or cause} ({cause.filename or 'disk'}). {resume}") from cause


def encode_part(
    samples: pa.Table, outcomes: pa.Table, tokens: pa.Table | None, *, compact: bool = False
) -> dict[str, memoryview]:
    """Returns the files of a part: table -> bytes of its Parquet file.

    Tables are cast to the schema of `data/schema.py`. All rows of a sample must be in one part. Raises ValueError
    for unknown columns, which would otherwise be lost, and for missing ones.
    """
    d_model = _d_model(samples.schema)
    files = {}
    for name, table in ((TOKENS, tokens), (OUTCOMES, outcomes)):
        if table is not None:
            columns = latency_tokens_schema(d_model) if name == TOKENS else outcomes_schema()
            files[name] = parquet_bytes(conform(table, columns, name), name, compact=compact)
    digests = {COMPANION_KEY + name.encode(): hashlib.sha256(file).hexdigest() for name, file in files.items()}
    conformed = conform(samples, samples_schema(d_model), SAMPLES)
    files[SAMPLES] = parquet_bytes(conformed.replace_schema_metadata(digests), SAMPLES, compact=compact)
    return files


def _d_model(samples: pa.Schema) -> int:
    """Returns the width of the language features; 0 where imported results have none."""
    if "language_feature" not in samples.names:
        return 0
    return int(samples.field("language_feature").type.list_size)


def conform(table: pa.Table, schemas: tuple[pa.Schema, pa.Schema], name: str) -> pa.Table:
    """Returns `table` with exactly the format's columns, types and order."""
    required, optional = schemas
    fields = [*required, *(field for field in optional if field.name in table.column_names)]
    unknown = set(table.column_names) - {field.name for field in fields}
    missing = {field.name for field in required} - set(table.column_names)
    if unknown or missing:
        raise ValueError(f"{name}: columns missing {sorted(missing)}, unknown {sorted(unknown)}")
    return table.select([field.name for field in fields]).cast(pa.schema(fields))


def parquet_bytes(table: pa.Table, name: str, *, compact: bool = False) -> memoryview:
    """Returns the bytes of a Parquet file with page checksums."""
    sink = io.BytesIO()
    split = {}  # bytes of one significance together: slower, but compresses better
    if compact:
        split = {column: "BYTE_STREAM_SPLIT" for column in _TIMES if column in table.column_names}
        split |= {f"{column}.list.element": "BYTE_STREAM_SPLIT" for column in _VECTORS if column in table.column_names}
    pq.write_table(
        table,
        sink,
        compression="zstd",
        compression_level=COMPACT_ZSTD_LEVEL if compact else ZSTD_LEVEL,
        use_dictionary=[column for column in table.column_names if column not in (*_VECTORS, *split)],
        column_encoding=split or None,
        write_page_checksum=True,
        row_group_size=8192 if name == TOKENS else 1 << 20,
    )
    return sink.getbuffer()
