"""The request for a precompute run. The command line fills it in; the run records what its rows depend on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ...data.cache.run_record import Shard
from ...data.datasets.columns import column_maps, source_splits
from ...data.datasets.registry import parse_dataset_option
from ...data.errors import KnobctlError
from ...data.knobs import KnobSpace
from ...data.machine import check_threads

MEASURED_MODES = ("blockwise", "end_to_end")
PART_SAMPLES = 16


@dataclass(frozen=True)
class PrecomputeConfig:
    """One `knobctl precompute` with a model."""

    model: str  # bundled name, checkpoint directory or hub id
    datasets: tuple[str, ...]  # NAME, or NAME=SOURCE for the user's own files
    out: Path
    samples: int | Mapping[str, int] | None = None  # of each dataset, or by name; None or a missing name: all
    revision: str | None = None
    device: str = "cuda"
    dtype: str = "auto"
    seed: int = 42
    space: KnobSpace = field(default_factory=KnobSpace)
    budgets: tuple[str, ...] = ()  # ms, or multiples of the full latency such as `0.5x`; empty: the pilot's grid
    latency_mode: str = "blockwise"
    runs: int = 5
    checks_per_tiling: int = 1  # in mode blockwise: settings of each tiling that are also run end to end
    importance: Path | None = None  # None: measured
    importance_samples: int = 200
    data_root: Path | None = None
    images: Path | None = None
    metrics: Mapping[str, str] = field(default_factory=dict)  # dataset -> metric
    max_new_tokens: Mapping[str, int] = field(default_factory=dict)
    column: tuple[str, ...] = ()  # [DATASET.]FIELD=COLUMN: fields that have other names in the source
    source_split: tuple[str, ...] = ()  # [DATASET=]SPLIT: instead of a dataset's usual split
    skip_bad: bool = False
    shard: Shard = field(default_factory=Shard)
    like: Path | None = None  # directory of the first shard, whose budgets and importance scores are used
    part_samples: int = PART_SAMPLES
    # Threads of the answer sweep on the CPU; None: one. A second thread waits by spinning: on two busy cores it cost
    # 4 to 20 times the processor time, and on idle cores it speeds up only a small part of a run.
    threads: int | None = None
    workers: int = 1  # processes on this machine that divide the samples: see scale/workers.py
    # Results of other runs (knobctl precompute --from-results with --model): see recorded.py.
    from_results: Path | None = None
    complete: bool = False
    imported_latency: bool = False
    strict: bool = False

    def __post_init__(self) -> None:
        """Raises KnobctlError for invalid values."""
        if not self.datasets:
            raise KnobctlError("no dataset was named: give at least one with --dataset NAME.")
        if len(self.dataset_sources) != len(self.datasets):
            raise KnobctlError(f"a dataset was named twice: {', '.join(self.datasets)}.")
        if self.latency_mode not in MEASURED_MODES:
            raise KnobctlError(f"latency mode {self.latency_mode!r} is unknown: use {' or '.join(MEASURED_MODES)}.")
        check_threads(self.sweep_threads)
        for name in ("runs", "part_samples", "importance_samples", "workers"):
            if getattr(self, name) < 1:
                raise KnobctlError(f"{name} must be at least 1, not {getattr(self, name)}.")
        counts = self.samples if isinstance(self.samples, Mapping) else {}
        named_options = (
            ("metric", self.metrics),
            ("token limit", self.max_new_tokens),
            ("number of samples", counts),
        )
        for option, named in named_options:
            unknown = set(named) - set(self.dataset_names)
            if unknown:
                raise KnobctlError(
                    f"a {option} was given for {sorted(unknown)[0]!r}, which is not a dataset of this run."
                )
        column_maps(self.column, self.dataset_names)  # both raise for malformed options
        source_splits(self.source_split, self.dataset_names)
        if self.from_results is None and (self.complete or self.imported_latency or self.strict):
            raise KnobctlError("--complete, --latency imported and --strict need recorded results: add --from-results.")
        if self.complete and self.imported_latency:
            raise KnobctlError(
                "--complete measures latencies, --latency imported keeps recorded ones: use one of them."
            )
        if self.workers > 1 and self.shard.count > 1:
            raise KnobctlError("--shard and --workers both divide the samples: use one of them.")
        if self.shard.count > 1 and self.shard.index > 0 and self.like is None:
            raise KnobctlError(
                f"shard {self.shard} needs the budgets and importance scores of the first one: use --like DIR to name "
                f"the directory that `--shard 0/{self.shard.count}` writes (its run.json is enough)."
            )

    def samples_of(self, dataset: str) -> int | None:
        """Returns the largest number of samples to draw from a dataset; None: all."""
        return self.samples.get(dataset) if isinstance(self.samples, Mapping) else self.samples

    def columns_of(self, dataset: str) -> dict[str, str]:
        """Returns the fields that have other names in a dataset's source: field -> column."""
        return column_maps(self.column, self.dataset_names)[dataset]

    def source_split_of(self, dataset: str) -> str | None:
        """Returns the requested split of a dataset's source; None: the usual one."""
        return source_splits(self.source_split, self.dataset_names).get(dataset)

    @cached_property
    def dataset_sources(self) -> dict[str, str | None]:
        """The datasets: name -> source, None for the known files."""
        return dict(parse_dataset_option(item) for item in self.datasets)

    @property
    def dataset_names(self) -> tuple[str, ...]:
        return tuple(self.dataset_sources)

    @property
    def manifest_latency_mode(self) -> str:
        """The mode as the cache names it: `imported` where recorded latencies are kept and none is measured."""
        return "imported" if self.imported_latency else self.latency_mode

    @property
    def sweep_threads(self) -> int:
        """Threads of the answer sweep."""
        return self.threads or 1
