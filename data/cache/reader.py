"""Opens a cache as dense arrays, and checks everything but the tokens' numbers, which are checked when first used.

Axes: S samples (sorted by sample_id), X settings (`KnobSpace.settings`), T tiers, P insertion positions, M budgets,
D d_model.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from ..errors import CacheError, UnknownSetting
from ..knobs import KnobSpace
from ..schema import SPLITS, samples_schema
from .columns import PartColumn, check_schema, codes, typed, vectors
from .file_list import Listing, check_files
from .location import located
from .manifest import Manifest, timing_error
from .outcomes import OutcomeRows, locate, read_outcomes
from .parts import (
    ENCODER_NAME,
    OUTCOMES,
    SAMPLES,
    TOKENS,
    check_inside,
    open_part,
    parquet_errors,
    part_paths,
    read_columns,
)
from .token_store import TokenStore, open_token_store

MAX_FEATURE_NUMBERS = 1 << 32  # S x D: 16 GiB of float32
MAX_CELLS = 1 << 28  # S x X
BUSY = "the machine was busy"
UNSTEADY = (
    0.2  # relative error of latencies; 0.39 on a machine with other work, where controllers trained on them failed
)


@dataclass(frozen=True, eq=False)
class Cache:
    """A cache, open for reading. Missing values are NaN in numbers, False in `present_*`, None in objects."""

    path: Path
    manifest: Manifest
    samples: pl.DataFrame  # all columns of format 1 but language_feature; row s is sample s
    language_feature_SD: NDArray[np.float32]
    accuracy_SX: NDArray[np.float32]
    latency_ms_SX: NDArray[np.float32]
    tokens: TokenStore | None
    budget_encoder_path: Path | None
    source: str  # where it is: its path, or its address on the hub with the commit
    warnings: list[str]
    _outcomes: OutcomeRows = field(repr=False)

    @property
    def space(self) -> KnobSpace:
        return self.manifest.space

    @property
    def d_model(self) -> int:
        return self.manifest.d_model

    @cached_property
    def budgets_ms(self) -> NDArray[np.float32]:
        """The budget grid, ascending, [M]."""
        return np.asarray(self.manifest.budgets_ms, np.float32)

    @cached_property
    def sample_ids(self) -> tuple[str, ...]:
        return tuple(self.samples.get_column("sample_id").to_list())

    @cached_property
    def sample_index(self) -> dict[str, int]:
        return {sample_id: index for index, sample_id in enumerate(self.sample_ids)}

    @cached_property
    def present_SX(self) -> NDArray[np.bool_]:
        """Whether there is a row with an accuracy, [S, X]."""
        return ~np.isnan(self.accuracy_SX)

    def indices(self, split: str) -> NDArray[np.int64]:
        """Returns the indices of the samples in `split`, ascending. Raises CacheError for an unknown split."""
        if split not in SPLITS:
            raise CacheError(f"split {split!r} is not one of {list(SPLITS)}")
        return np.flatnonzero((self.samples.get_column("split") == split).to_numpy())

    def budget_index(self, budget_ms: float) -> int:
        """Returns the index of `budget_ms` in the grid. Raises UnknownSetting for any other budget."""
        found = np.flatnonzero(self.budgets_ms == np.float32(budget_ms))
        if not len(found):
            grid = ", ".join(f"{budget:g}" for budget in self.budgets_ms)
            raise UnknownSetting(f"{self.path} has no budget of {budget_ms:g} ms. Its grid, in ms: {grid}")
        return int(found[0])

    def outcome_column(self, name: str) -> NDArray[Any] | None:
        """Returns an optional column of `outcomes` as [S, X], read on first use; None when no part has it.

        Numbers are float32, NaN where missing; strings and lists of numbers are objects, None where missing.
        """
        return self._outcomes.column(name)

    def outcome_value(self, name: str, sample: int, setting: int) -> Any:
        """Returns one cell of an optional column as a Python value; None when it is missing."""
        return self._outcomes.value(name, sample, setting)

    @property
    def latency_runs_ms_SXR(self) -> NDArray[np.float32] | None:
        """Latency of every timed run, [S, X, R] in ms, NaN beyond a row's runs. None when no part has the column."""
        return self._outcomes.runs

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the model, knob space, budgets, samples, language features and accuracies.

        Independent of parts, row order and the number of shards, of dates and latencies, and of the budget encoder and
        the tokens, which follow from the model's fingerprint and the samples.
        """
        manifest = self.manifest
        identity = {
            "model": [
                manifest.model_name,
                manifest.fingerprint,
                manifest.d_model,
                manifest.n_blocks,
                manifest.native_top_k,
            ],
            "knobs": manifest.space.to_dict(),
            "budgets_ms": self.budgets_ms.tolist(),
            "samples": self.samples.select("sample_id", "dataset", "split").rows(),
        }
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode())
        digest.update(self.language_feature_SD.tobytes())
        digest.update((self.accuracy_SX + np.float32(0)).tobytes())  # -0.0 is 0.0
        return digest.hexdigest()


def open_cache(path: str | os.PathLike[str], *, tokens: bool = True, derived: Path | None = None) -> Cache:
    """Opens a cache for reading.

    Args:
        path: The cache's directory, the name of a bundled cache, `bundled:nano`, or
            `hf://datasets/owner/name[@revision]`, which is fetched once.
        tokens: Whether to offer latency tokens; their numbers are read on first use.
        derived: Where to keep the unpacked tokens; by default inside the cache, or in the user's cache directory when
            the cache cannot be written or is a bundled one.

    Raises:
        CacheError: The cache cannot be fetched, or does not conform to format 1; names file, row and column.
    """
    path, source = located(path)
    manifest = Manifest.read(path)
    warnings = _timing_warnings(path, manifest)
    parts = {name: part_paths(path, name) for name in (SAMPLES, OUTCOMES, TOKENS)}
    for name in (SAMPLES, OUTCOMES):
        if not parts[name]:
            raise CacheError(f"{path / name} contains no part-*.parquet: the cache lacks its table `{name}`")
    listing = check_files(path, manifest, parts, warnings)
    samples, feature_SD = _read_samples(path, parts[SAMPLES], manifest.d_model, listing)
    ids = pa.array(samples.get_column("sample_id").to_list(), pa.string())
    if len(ids) * len(manifest.space.settings) > MAX_CELLS:
        raise CacheError(
            f"{path}: {len(ids):,} samples x {len(manifest.space.settings):,} settings are more than can be opened"
        )
    outcomes = read_outcomes(path, parts[OUTCOMES], manifest.space, ids, listing)
    if outcomes.without_rows:
        warnings.append(f"{path}: {outcomes.without_rows} of {len(ids)} samples have no outcomes")
    store = None
    if tokens and parts[TOKENS] and manifest.budgets_ms:
        store = open_token_store(
            path, parts[TOKENS], manifest, ids, derived=derived, warnings=warnings, listing=listing
        )
    encoder = path / ENCODER_NAME
    if encoder.exists():
        check_inside(path, encoder)
    return Cache(
        path=path,
        manifest=manifest,
        samples=samples,
        language_feature_SD=feature_SD,
        accuracy_SX=outcomes.accuracy_SX,
        latency_ms_SX=outcomes.latency_ms_SX,
        tokens=store,
        budget_encoder_path=encoder if encoder.exists() else None,
        source=source,
        warnings=warnings,
        _outcomes=outcomes,
    )


def _timing_warnings(path: Path, manifest: Manifest) -> list[str]:
    """Warns if the machine was too busy for reliable latencies. `knobctl demo` shows this warning first."""
    error = timing_error(manifest)
    if error is None or error <= UNSTEADY:
        return []
    return [
        f"{path}: {BUSY} while latencies were measured: one in twenty is off by {error:.0%} or more. "
        "Rewards and verdicts depend on latencies: make the cache again while nothing else runs"
    ]


def _read_samples(
    cache: Path, paths: Sequence[Path], d_model: int, listing: Listing
) -> tuple[pl.DataFrame, NDArray[np.float32]]:
    """Returns the samples, sorted by id, and their language features [S, D]."""
    required, optional = samples_schema(d_model)
    rows = 0
    for path in paths:  # one at a time: there may be more parts than a process may have open files
        with open_part(cache, path) as file:
            rows += file.metadata.num_rows
    if rows == 0:
        raise CacheError(f"{cache / SAMPLES} contains no sample")
    if rows * d_model > MAX_FEATURE_NUMBERS:
        raise CacheError(f"{cache / SAMPLES}: {rows:,} samples of {d_model} numbers each are more than can be opened")
    frames, features = [], []
    for path in paths:
        with open_part(cache, path) as file:
            check_schema(path, file.schema_arrow, required, optional)
            known = [f for f in (*required, *optional) if f.name in file.schema_arrow.names]
            with parquet_errors(path):
                table = read_columns(file, [f.name for f in known])
        listing.check_rows(path, table.num_rows)
        for name in ("sample_id", "dataset", "split"):
            PartColumn(path, name, table.column(name)).no_nulls()
        codes(
            PartColumn(path, "split", table.column("split")),
            pa.array(SPLITS),
            f"split {{}} is not one of {list(SPLITS)}",
        )
        features.append(_features(path, table, d_model))
        shown = [f for f in known if f.name != "language_feature"]
        columns = {f.name: typed(PartColumn(path, f.name, table.column(f.name)), f.type) for f in shown}
        columns |= {f.name: pa.nulls(table.num_rows, f.type) for f in optional if f.name not in columns}
        frames.append(pa.table(columns, schema=pa.schema(f for f in (*required, *optional) if f.name in columns)))
    frame = pl.DataFrame(pa.concat_tables(frames))
    order = frame.get_column("sample_id").arg_sort().to_numpy()
    frame = frame[order]
    same = (frame.get_column("sample_id") == frame.get_column("sample_id").shift(1)).fill_null(False).to_numpy()
    if same.any():
        _refuse_twice(paths, [len(piece) for piece in features], order, int(np.flatnonzero(same)[0]), frame)
    feature_SD = (np.concatenate(features) if len(features) > 1 else features[0])[order]
    return frame, np.ascontiguousarray(feature_SD)


def _features(path: Path, table: pa.Table, d_model: int) -> NDArray[np.float32]:
    """Returns the language features of a part, [rows, d_model]."""
    if d_model == 0:  # imported results have none
        return np.zeros((table.num_rows, 0), np.float32)
    column = PartColumn(path, "language_feature", table.column("language_feature"))
    column.no_nulls()
    return np.asarray(vectors(column, d_model, np.float32)[0])


def _refuse_twice(
    paths: Sequence[Path], lengths: Sequence[int], order: NDArray[Any], second: int, frame: pl.DataFrame
) -> None:
    rows = sorted(int(order[index]) for index in (second - 1, second))
    (first_path, first_row), (path, row) = (locate(paths, lengths, row) for row in rows)
    raise CacheError(
        f"{path}: row {row} (from 0), column 'sample_id': sample {frame.get_column('sample_id')[second]!r} "
        f"also occurs in row {first_row} of {first_path}"
    )
