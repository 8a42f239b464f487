"""`cache.json`, the manifest of a cache. Fields of format 1 are checked strictly; unknown ones are kept unread."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ..errors import CacheError, ImportanceError
from ..files.bounded_json import dump_json, read_json
from ..files.json_fields import JsonFields
from ..knobs import KnobSpace
from ..plans import ImportanceScores
from ..schema import FORMAT_NAME, FORMAT_VERSION, LATENCY_MODES, SPLITS

MANIFEST_NAME = "cache.json"
RUN_NAME = "run.json"
LATENCY_STATISTICS = ("median", "mean")
CHECKSUM = "manifest_sha256"  # an extra field, by which `verify` detects a changed byte in cache.json itself

# Far above any real model or grid; they keep a hostile manifest from making the reader allocate terabytes.
MAX_D_MODEL = 1 << 17
MAX_BLOCKS = 1 << 12
MAX_BUDGETS = 1 << 12
MAX_SETTINGS = 1 << 17

_KNOWN = {"format", "version", "model", "knobs", "budgets_ms", "latency_mode", "device", "importance", "runs"}
_KNOWN |= {"latency_statistic", "latency_check", "prompt_template", "max_new_tokens", "datasets", "files"}
_KNOWN |= {"created_by", "created_at"}


@dataclass(frozen=True)
class FileRecord:
    """One file of a cache: path relative to the cache, rows (None if it is not a table) and sha256."""

    path: str
    rows: int | None
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The content of `cache.json`; raises CacheError for values that no cache can have.

    `extra` holds top-level keys that format 1 does not define; they survive a rewrite.
    """

    model_name: str
    d_model: int  # 0 in imported results without language features: `samples` then lacks the column
    n_blocks: int
    native_top_k: int
    space: KnobSpace
    budgets_ms: tuple[float, ...]  # ascending; empty only in imported results
    latency_mode: str
    n_experts: int | None = None
    fingerprint: str | None = None  # of the model
    dtype: str | None = None
    family: str | None = None
    device: dict[str, Any] | None = None
    importance: ImportanceScores | None = None
    runs: int | None = None
    latency_statistic: str | None = None
    latency_check: dict[str, Any] | None = None
    prompt_template: str | None = None
    max_new_tokens: int | dict[str, int] | None = None
    datasets: dict[str, Any] | None = None
    files: tuple[FileRecord, ...] | None = None
    created_by: str | None = None
    created_at: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "budgets_ms", tuple(sorted(float(budget) for budget in self.budgets_ms)))
        if self.files is not None:
            object.__setattr__(self, "files", tuple(self.files))
        _check(self)

    def to_dict(self) -> dict[str, Any]:
        """Returns the content of `cache.json`, without the fields that are None."""
        model = {
            "name": self.model_name,
            "d_model": self.d_model,
            "n_blocks": self.n_blocks,
            "native_top_k": self.native_top_k,
            "fingerprint": self.fingerprint,
            "n_experts": self.n_experts,
            "dtype": self.dtype,
            "family": self.family,
        }
        record: dict[str, Any] = {
            "format": FORMAT_NAME,
            "version": FORMAT_VERSION,
            "model": {name: value for name, value in model.items() if value is not None},
            "knobs": self.space.to_dict(),
            "budgets_ms": list(self.budgets_ms),
            "latency_mode": self.latency_mode,
            "device": self.device,
            "importance": None if self.importance is None else self.importance.to_dict(),
            "runs": self.runs,
            "latency_statistic": self.latency_statistic,
            "latency_check": self.latency_check,
            "prompt_template": self.prompt_template,
            "max_new_tokens": self.max_new_tokens,
            "datasets": self.datasets,
            "files": None if self.files is None else [vars(file).copy() for file in self.files],
            "created_by": self.created_by,
            "created_at": self.created_at,
            **self.extra,
        }
        return {name: value for name, value in record.items() if value is not None}

    @classmethod
    def from_dict(cls, record: Any, where: str = MANIFEST_NAME) -> Manifest:
        """Reads what `to_dict` wrote. Raises CacheError, naming `where` and field, for what format 1 does not allow."""
        fields = JsonFields(record, where, CacheError)
        if fields.text("format") != FORMAT_NAME:
            raise fields.fail("format", f"is {record['format']!r}, not {FORMAT_NAME!r}: this is not a knobctl cache")
        version = fields.integer("version")
        if version > FORMAT_VERSION:
            raise CacheError(
                f"{where} has format version {version}, newer than version {FORMAT_VERSION} that this knobctl reads: "
                "upgrade knobctl"
            )
        if version < 1:
            raise fields.fail("version", f"is {version}; versions start at 1")
        model = fields.fields("model")
        n_blocks = model.integer("n_blocks")
        return cls(
            model_name=model.text("name"),
            d_model=model.integer("d_model"),
            n_blocks=n_blocks,
            native_top_k=model.integer("native_top_k"),
            space=_knob_space(fields, where),
            budgets_ms=tuple(fields.each("budgets_ms", _float32)),
            latency_mode=fields.text("latency_mode"),
            n_experts=model.optional("n_experts", JsonFields.integer),
            fingerprint=model.optional("fingerprint", JsonFields.text),
            dtype=model.optional("dtype", JsonFields.text),
            family=model.optional("family", JsonFields.text),
            device=fields.optional("device", JsonFields.record),
            importance=fields.optional("importance", lambda f, name: _importance(f.fields(name), n_blocks)),
            runs=fields.optional("runs", JsonFields.integer),
            latency_statistic=fields.optional("latency_statistic", JsonFields.text),
            latency_check=fields.optional("latency_check", JsonFields.record),
            prompt_template=fields.optional("prompt_template", JsonFields.text),
            max_new_tokens=fields.optional("max_new_tokens", _tokens_allowed),
            datasets=fields.optional("datasets", _datasets),
            files=fields.optional("files", _files),
            created_by=fields.optional("created_by", JsonFields.text),
            created_at=fields.optional("created_at", JsonFields.text),
            extra={name: value for name, value in record.items() if name not in _KNOWN and name != CHECKSUM},
        )

    def to_bytes(self) -> bytes:
        """Returns the bytes of `cache.json`, which include their own digest."""
        record = self.to_dict()
        return dump_json({**record, CHECKSUM: _digest(record)})

    @classmethod
    def read(cls, cache: Path) -> Manifest:
        """Reads the manifest of `cache`. Raises CacheError, whose message distinguishes incomplete from missing."""
        path = cache / MANIFEST_NAME
        if not cache.is_dir():
            raise CacheError(
                f"{cache} {'is not a directory' if cache.exists() else 'does not exist'}: a cache is a directory"
            )
        if not path.is_file():
            if (cache / RUN_NAME).is_file():
                raise CacheError(
                    f"{cache} is half-written: it has {RUN_NAME} but no {MANIFEST_NAME}, which is written last. "
                    "Run the same `knobctl precompute` command again to finish it."
                )
            raise CacheError(f"{cache} has no {MANIFEST_NAME}: it is not a cache, or writing it was interrupted")
        return cls.from_dict(read_json(path, CacheError), str(path))


def manifest_changed(path: Path) -> bool:
    """Whether any byte of a `cache.json` that includes its own digest has changed."""
    record = read_json(path, CacheError)
    if not isinstance(record, dict) or CHECKSUM not in record:
        return False
    sealed = {name: value for name, value in record.items() if name != CHECKSUM}
    return record[CHECKSUM] != _digest(sealed) or path.read_bytes() != dump_json({**sealed, CHECKSUM: _digest(sealed)})


def timing_error(manifest: Manifest) -> float | None:
    """Returns the error that 5 % of the checked latencies exceed, relative to whole requests; None if unknown."""
    found: Any = manifest.latency_check
    for name in ("stages", "total", "p95_absolute_error"):
        found = found.get(name) if isinstance(found, dict) else None
    return float(found) if isinstance(found, int | float) else None


def _digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _knob_space(fields: JsonFields, where: str) -> KnobSpace:
    knobs = fields.record("knobs")
    if knobs.get("insertion_positions", ()) is None:  # some programs write "no position is known" as null
        knobs["insertion_positions"] = []
    return KnobSpace.from_fields(JsonFields(knobs, where, CacheError, "knobs."))


def _importance(fields: JsonFields, n_blocks: int) -> ImportanceScores:
    found = ImportanceScores.from_fields(fields)
    if n_blocks > 2 and found.n_blocks == n_blocks - 2:  # the documented layout without the first and the last block
        std = None if found.std is None else (None, *found.std, None)
        try:
            return replace(found, scores=(None, *found.scores, None), std=std)
        except ImportanceError as cause:
            raise fields.fail(None, f"cannot be importance scores: {cause}") from cause
    if found.n_blocks != n_blocks:
        raise fields.fail("scores", f"has {found.n_blocks} blocks, but the model has {n_blocks}")
    return found


def _float32(fields: JsonFields, name: str) -> float:
    value = fields.number(name)
    if abs(value) > float(np.finfo(np.float32).max):
        raise fields.fail(name, f"is too large for float32: {value:g}")
    return value


def _tokens_allowed(fields: JsonFields, name: str) -> int | dict[str, int]:
    """Returns one token limit for all datasets, or one for each dataset."""
    value = fields.value(name)
    return fields.record(name) if isinstance(value, dict) else fields.integer(name)


def _datasets(fields: JsonFields, name: str) -> dict[str, Any]:
    """Returns the records of the datasets. Checks the entries that other modules read; others may hold anything."""
    records = fields.record(name)
    datasets = fields.fields(name)
    for dataset in records:
        entries = datasets.fields(dataset)
        for split in SPLITS:
            entries.optional(split, JsonFields.integer)
        for text in ("metric", "style", "instruction", "source", "images"):
            entries.optional(text, JsonFields.text)
    return records


def _files(fields: JsonFields, name: str) -> tuple[FileRecord, ...]:
    records = fields.each(name, _file)
    if len({record.path for record in records}) != len(records):
        raise fields.fail(name, "names a path twice")
    return tuple(records)


def _file(fields: JsonFields, name: str) -> FileRecord:
    entry = fields.fields(name)
    path, digest = entry.text("path"), entry.text("sha256")
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts or "\\" in path or "\0" in path or not parts.parts:
        raise entry.fail("path", f"is {path!r}, which is outside the cache")
    if len(digest) != 64 or not set(digest.lower()) <= set("0123456789abcdef"):
        raise entry.fail("sha256", f"of {path} must be 64 hex digits")
    rows = entry.optional("rows", lambda inner, key: inner.integer(key, minimum=0))
    return FileRecord(str(parts), rows, digest.lower())


def _check(manifest: Manifest) -> None:
    """Raises CacheError for values that no cache can have."""
    for name, low, high in (
        ("d_model", 0 if manifest.latency_mode == "imported" else 1, MAX_D_MODEL),  # 0: imported without a model
        ("n_blocks", 1, MAX_BLOCKS),
        ("native_top_k", 1, MAX_BLOCKS),
        ("n_experts", 1, MAX_D_MODEL),
        ("runs", 1, 1 << 20),
    ):
        value = getattr(manifest, name)
        if value is not None and not low <= value <= high:
            raise CacheError(f"{MANIFEST_NAME}: {name} is {value}, outside {low} to {high}")
    if manifest.latency_mode not in LATENCY_MODES:
        raise CacheError(f"{MANIFEST_NAME}: latency_mode {manifest.latency_mode!r} is not one of {list(LATENCY_MODES)}")
    if manifest.latency_statistic not in (None, *LATENCY_STATISTICS):
        raise CacheError(
            f"{MANIFEST_NAME}: latency_statistic {manifest.latency_statistic!r} is not one of "
            f"{list(LATENCY_STATISTICS)}"
        )
    _check_space(manifest)
    budgets_ms = np.asarray(manifest.budgets_ms, np.float32)
    if not len(budgets_ms) and manifest.latency_mode != "imported":
        raise CacheError(f"{MANIFEST_NAME}: budgets_ms is empty; a measured cache has at least one budget")
    if len(budgets_ms) > MAX_BUDGETS:
        raise CacheError(f"{MANIFEST_NAME}: {len(budgets_ms)} budgets are more than {MAX_BUDGETS}")
    if not (np.isfinite(budgets_ms) & (budgets_ms > 0)).all() or len(np.unique(budgets_ms)) != len(budgets_ms):
        raise CacheError(
            f"{MANIFEST_NAME}: budgets_ms must be positive, finite ms, distinct as float32: {list(manifest.budgets_ms)}"
        )


def _check_space(manifest: Manifest) -> None:
    space, n_blocks = manifest.space, manifest.n_blocks
    size = len(space.tiers) * len(space.insertion_positions) * len(space.top_k) * len(space.num_blocks)
    if size > MAX_SETTINGS:
        raise CacheError(f"{MANIFEST_NAME}: the knob space has {size:,} combinations, more than {MAX_SETTINGS:,}")
    if not space.settings:
        raise CacheError(
            f"{MANIFEST_NAME}: no setting can run, because num_blocks is always below the insertion position: {space}"
        )
    if max(space.num_blocks) > n_blocks or max(p or 0 for p in space.insertion_positions) > n_blocks:
        raise CacheError(f"{MANIFEST_NAME}: the model has {n_blocks} blocks, but the knob space asks for more: {space}")
    if max(space.top_k) > (manifest.n_experts or MAX_BLOCKS):
        raise CacheError(
            f"{MANIFEST_NAME}: the model has {manifest.n_experts} experts, but top_k asks for more: {space}"
        )
    if manifest.importance is not None and manifest.importance.n_blocks != n_blocks:
        raise CacheError(
            f"{MANIFEST_NAME}: importance names {manifest.importance.n_blocks} blocks, but the model has {n_blocks}"
        )
