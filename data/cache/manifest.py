"""`cache.json`: what a cache is. Strict on what the format names, silent on what it does not know."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ..errors import CacheError, ImportanceError, UnknownSetting
from ..files.bounded_json import dump_json, read_json
from ..knobs import KnobSpace
from ..plans import ImportanceScores
from ..schema import FORMAT_NAME, FORMAT_VERSION, LATENCY_MODES, SPLITS

MANIFEST_NAME = "cache.json"
RUN_NAME = "run.json"
LATENCY_STATISTICS = ("median", "mean")
CHECKSUM = "manifest_sha256"  # ours: lets `verify` see a changed byte in cache.json itself

# Far above any real model or grid; they keep a hostile manifest from asking for terabytes of axes.
MAX_D_MODEL = 1 << 17
MAX_BLOCKS = 1 << 12
MAX_BUDGETS = 1 << 12
MAX_SETTINGS = 1 << 17

_KNOWN = {"format", "version", "model", "knobs", "budgets_ms", "latency_mode", "device", "importance", "runs"}
_KNOWN |= {"latency_statistic", "latency_check", "prompt_template", "max_new_tokens", "datasets", "files"}
_KNOWN |= {"created_by", "created_at"}


@dataclass(frozen=True)
class FileRecord:
    """One file of a cache: its path relative to the cache, rows (None where it is no table) and full digest."""

    path: str
    rows: int | None
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What `cache.json` says. `extra` holds top-level keys that format 1 does not name; they survive a rewrite."""

    model_name: str
    d_model: int  # 0 in imported results that know no language features: `samples` then lacks the column
    n_blocks: int
    native_top_k: int
    space: KnobSpace
    budgets_ms: tuple[float, ...]  # ascending; empty only in imported results
    latency_mode: str
    n_experts: int | None = None
    fingerprint: str | None = None  # of the model
    dtype: str | None = None
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
        """The content of `cache.json`; what is not known is left out."""
        model = {
            "name": self.model_name,
            "d_model": self.d_model,
            "n_blocks": self.n_blocks,
            "native_top_k": self.native_top_k,
            "fingerprint": self.fingerprint,
            "n_experts": self.n_experts,
            "dtype": self.dtype,
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
        """The opposite of `to_dict`. Raises CacheError with `where` and the field for what format 1 does not allow."""
        fields = _Fields(record, where)
        if fields.get("format", str) != FORMAT_NAME:
            raise CacheError(
                f'{where}: "format" is {record["format"]!r}, not {FORMAT_NAME!r}: this is no knobctl cache'
            )
        version = fields.get("version", int)
        if version > FORMAT_VERSION:
            raise CacheError(
                f"{where} is of format version {version}, newer than the {FORMAT_VERSION} that this knobctl reads: "
                "upgrade knobctl"
            )
        if version < 1:
            raise CacheError(f'{where}: "version" is {version}; versions start at 1')
        model = _Fields(fields.get("model", dict), f"{where}: model")
        try:
            space = KnobSpace.from_dict(_knob_lists(fields.get("knobs", dict), where))
        except UnknownSetting as cause:
            raise CacheError(f'{where}: "knobs": {cause}') from cause
        return cls(
            model_name=model.get("name", str),
            d_model=model.get("d_model", int),
            n_blocks=model.get("n_blocks", int),
            native_top_k=model.get("native_top_k", int),
            space=space,
            budgets_ms=tuple(_numbers(fields.get("budgets_ms", list), f'{where}: "budgets_ms"')),
            latency_mode=fields.get("latency_mode", str),
            n_experts=model.get("n_experts", int, optional=True),
            fingerprint=model.get("fingerprint", str, optional=True),
            dtype=model.get("dtype", str, optional=True),
            device=fields.get("device", dict, optional=True),
            importance=_importance(fields.get("importance", dict, optional=True), model.get("n_blocks", int), where),
            runs=fields.get("runs", int, optional=True),
            latency_statistic=fields.get("latency_statistic", str, optional=True),
            latency_check=fields.get("latency_check", dict, optional=True),
            prompt_template=fields.get("prompt_template", str, optional=True),
            max_new_tokens=fields.get("max_new_tokens", (int, dict), optional=True),
            datasets=_datasets(fields.get("datasets", dict, optional=True), where),
            files=_files(fields.get("files", list, optional=True), where),
            created_by=fields.get("created_by", str, optional=True),
            created_at=fields.get("created_at", str, optional=True),
            extra={name: value for name, value in record.items() if name not in _KNOWN and name != CHECKSUM},
        )

    def to_bytes(self) -> bytes:
        """The bytes of `cache.json`, sealed with their own digest."""
        record = self.to_dict()
        return dump_json({**record, CHECKSUM: _digest(record)})

    @classmethod
    def read(cls, cache: Path) -> Manifest:
        """Reads the manifest of `cache`; absent means half-written or no cache, and the message says which."""
        path = cache / MANIFEST_NAME
        if not cache.is_dir():
            raise CacheError(
                f"{cache} is {'not a directory' if cache.exists() else 'not there'}: a cache is a directory"
            )
        if not path.is_file():
            if (cache / RUN_NAME).is_file():
                raise CacheError(
                    f"{cache} is half-written: it has {RUN_NAME} but no {MANIFEST_NAME}, which comes last. "
                    "Run the same `knobctl precompute` command again to finish it."
                )
            raise CacheError(f"{cache} has no {MANIFEST_NAME}: not a cache, or one whose writing was cut off")
        return cls.from_dict(read_json(path), str(path))


def manifest_changed(path: Path) -> bool:
    """Whether a `cache.json` that carries its own digest differs from what was written, by a single byte even."""
    record = read_json(path)
    if not isinstance(record, dict) or CHECKSUM not in record:
        return False
    sealed = {name: value for name, value in record.items() if name != CHECKSUM}
    return record[CHECKSUM] != _digest(sealed) or path.read_bytes() != dump_json({**sealed, CHECKSUM: _digest(sealed)})


def _digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True, allow_nan=False).encode()).hexdigest()


class _Fields:
    """Typed access to a JSON object, with the place in every message."""

    def __init__(self, record: Any, where: str) -> None:
        if not isinstance(record, dict):
            raise CacheError(f"{where} must be an object, not {_short(record)}")
        self.record = record
        self.where = where

    def get(self, name: str, kind: type | tuple[type, ...], *, optional: bool = False) -> Any:
        value = self.record.get(name)
        if value is None and optional:
            return None
        if name not in self.record:
            raise CacheError(f'{self.where}: "{name}" is missing')
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if type(value) not in kinds:  # `type`, because True is an int to isinstance
            names = " or ".join(_JSON_NAMES[item] for item in kinds)
            raise CacheError(f'{self.where}: "{name}" must be {names}, not {_short(value)}')
        return value


_JSON_NAMES = {str: "a string", int: "a whole number", dict: "an object", list: "a list"}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _knob_lists(knobs: dict[str, Any], where: str) -> dict[str, Any]:
    positions = knobs.get("insertion_positions")
    if "insertion_positions" in knobs and positions is None:  # written so by programs that know no position
        return {**knobs, "insertion_positions": []}
    for name, values in knobs.items():
        if name in ("tiers", "insertion_positions", "top_k", "num_blocks") and not isinstance(values, list):
            raise CacheError(f'{where}: knobs: "{name}" must be a list, not {_short(values)}')
    crops = knobs.get("tier_crops")
    if crops is not None and not isinstance(crops, list):
        raise CacheError(f'{where}: knobs: "tier_crops" must be a list of [low, high], not {_short(crops)}')
    return knobs


def _numbers(values: list[Any], where: str) -> list[float]:
    for index, value in enumerate(values):
        if type(value) not in (int, float):
            raise CacheError(f"{where}: entry {index} must be a number, not {_short(value)}")
        if abs(value) > float(np.finfo(np.float32).max):
            raise CacheError(f"{where}: entry {index} is too large for float32: {_short(value)}")
    return [float(value) for value in values]


def _importance(record: dict[str, Any] | None, n_blocks: int, where: str) -> ImportanceScores | None:
    if record is None:
        return None
    fields = _Fields(record, f"{where}: importance")
    scores: list[float | None] = list(_optional_numbers(fields.get("scores", list), f"{where}: importance.scores"))
    std = fields.get("std", list, optional=True)
    std = None if std is None else list(_optional_numbers(std, f"{where}: importance.std"))
    if n_blocks > 2 and len(scores) == n_blocks - 2:  # the documented layout without the first and the last block
        scores = [None, *scores, None]
        std = None if std is None else [None, *std, None]
    if len(scores) != n_blocks or (std is not None and len(std) != n_blocks):
        raise CacheError(f"{where}: importance names {len(scores)} blocks, but the model has {n_blocks}")
    runs, source = fields.get("runs", int, optional=True), fields.get("source", str, optional=True)
    try:
        return ImportanceScores(tuple(scores), None if std is None else tuple(std), runs, source)
    except ImportanceError as cause:
        raise CacheError(f"{where}: importance: {cause}") from cause


def _optional_numbers(values: list[Any], where: str) -> list[float | None]:
    return [None if value is None else _numbers([value], f"{where}[{i}]")[0] for i, value in enumerate(values)]


def _datasets(records: dict[str, Any] | None, where: str) -> dict[str, Any] | None:
    """Checks what is read of them later; what else they say is kept as it is."""
    for name, record in (records or {}).items():
        fields = _Fields(record, f"{where}: datasets.{name}")
        for split in SPLITS:
            fields.get(split, int, optional=True)
        for text in ("metric", "style", "source", "images"):
            fields.get(text, str, optional=True)
    return records


def _files(values: list[Any] | None, where: str) -> tuple[FileRecord, ...] | None:
    if values is None:
        return None
    records = []
    for index, value in enumerate(values):
        fields = _Fields(value, f"{where}: files[{index}]")
        path, digest = fields.get("path", str), fields.get("sha256", str)
        parts = PurePosixPath(path)
        if parts.is_absolute() or ".." in parts.parts or "\\" in path or "\0" in path or not parts.parts:
            raise CacheError(f"{where}: files[{index}] names {path!r}, which lies outside the cache")
        if len(digest) != 64 or not set(digest.lower()) <= set("0123456789abcdef"):
            raise CacheError(f"{where}: files[{index}] ({path}) has a sha256 that is not 64 hex digits")
        rows = fields.get("rows", int, optional=True)
        if rows is not None and rows < 0:
            raise CacheError(f"{where}: files[{index}] ({path}) has {rows} rows")
        records.append(FileRecord(str(parts), rows, digest.lower()))
    if len({record.path for record in records}) != len(records):
        raise CacheError(f'{where}: "files" names a path twice')
    return tuple(records)


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
        raise CacheError(f"{MANIFEST_NAME}: latency_mode {manifest.latency_mode!r} is none of {list(LATENCY_MODES)}")
    if manifest.latency_statistic not in (None, *LATENCY_STATISTICS):
        raise CacheError(
            f"{MANIFEST_NAME}: latency_statistic {manifest.latency_statistic!r} is none of {list(LATENCY_STATISTICS)}"
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
            f"{MANIFEST_NAME}: no setting can run, because num_blocks is always below the position: {space}"
        )
    if max(space.num_blocks) > n_blocks or max(p or 0 for p in space.insertion_positions) > n_blocks:
        raise CacheError(f"{MANIFEST_NAME}: the model has {n_blocks} blocks, but the knob space asks for more: {space}")
    if max(space.top_k) > (manifest.n_experts or MAX_BLOCKS):
        raise CacheError(f"{MANIFEST_NAME}: the model has {manifest.n_experts} experts, top_k asks for more: {space}")
    if manifest.importance is not None and manifest.importance.n_blocks != n_blocks:
        raise CacheError(
            f"{MANIFEST_NAME}: importance names {manifest.importance.n_blocks} blocks, but the model has {n_blocks}"
        )
