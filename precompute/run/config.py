"""What a precompute run is asked to do. The command line fills it in; the run records what outcomes depend on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ...data.cache.run_record import Shard
from ...data.datasets.columns import column_maps, source_splits
from ...data.errors import KnobctlError
from ...data.knobs import KnobSpace
from ...data.threads import check_threads

MEASURED_MODES = ("blockwise", "end_to_end")
PART_SAMPLES = 16


@dataclass(frozen=True)
class PrecomputeConfig:
    """One `knobctl precompute` with a model."""

    model: str  # bundled name, checkpoint directory or hub id
    datasets: tuple[str, ...]  # NAME, or NAME=SOURCE for other files
    out: Path
    samples: int | Mapping[str, int] | None = None  # of each dataset, or of some by name; None, or no name: all
    revision: str | None = None
    device: str = "cuda"
    dtype: str = "auto"
    seed: int = 42
    space: KnobSpace = field(default_factory=KnobSpace)
    budgets: tuple[str, ...] = ()  # ms or shares such as `0.5x`; empty: a grid from the pilot
    latency_mode: str = "blockwise"
    runs: int = 5
    checks_per_tiling: int = 1  # blockwise: settings of each tiling that are also run end to end
    importance: Path | None = None  # None: measured
    importance_samples: int = 200
    data_root: Path | None = None
    images: Path | None = None
    metrics: Mapping[str, str] = field(default_factory=dict)  # dataset -> metric
    max_new_tokens: Mapping[str, int] = field(default_factory=dict)
    column: tuple[str, ...] = ()  # [DATASET.]FIELD=COLUMN: fields that datasets keep under other names
    source_split: tuple[str, ...] = ()  # [DATASET=]SPLIT: instead of a dataset's usual split
    skip_bad: bool = False
    shard: Shard = field(default_factory=Shard)
    like: Path | None = None  # another shard's directory: budgets and importance are taken from it
    part_samples: int = PART_SAMPLES
    # Of the answer sweep on the CPU; None: one. A second one waits by spinning, so beside other work it cost 4 to 20
    # times the processor time (measured on two busy cores), and on idle ones it speeds up a small part of a run.
    threads: int | None = None
    workers: int = 1  # processes of this machine that share the samples: see workers.py
    # Results of other runs (knobctl precompute --from-results with --model): see combine.py.
    from_results: Path | None = None
    complete: bool = False
    imported_latency: bool = False
    strict: bool = False

    def __post_init__(self) -> None:
        """Raises KnobctlError for values that no run can have."""
        if not self.datasets:
            raise KnobctlError("no dataset was named: give at least one with --dataset NAME.")
        if len(set(self.dataset_names)) != len(self.dataset_names):
            raise KnobctlError(f"a dataset was named twice: {', '.join(self.dataset_names)}.")
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
                raise KnobctlError(f"a {option} was given for {sorted(unknown)[0]!r}, which is no dataset of this run.")
        column_maps(self.column, self.dataset_names)  # raises for what they cannot read
        source_splits(self.source_split, self.dataset_names)
        if self.from_results is None and (self.complete or self.imported_latency or self.strict):
            raise KnobctlError(
                "--complete, --latency imported and --strict are about recorded results: add --from-results."
            )
        if self.workers > 1 and self.shard.count > 1:
            raise KnobctlError("--shard and --workers both divide the samples: use one of them.")
        if self.shard.count > 1 and self.shard.index > 0 and self.like is None:
            raise KnobctlError(
                f"shard {self.shard} needs the budgets and importance scores of the first one: name the directory that "
                f"`--shard 0/{self.shard.count}` writes with --like DIR (its run.json is enough)."
            )

    def samples_of(self, dataset: str) -> int | None:
        """Returns how many samples of a dataset are drawn at most; None: all."""
        return self.samples.get(dataset) if isinstance(self.samples, Mapping) else self.samples

    def columns_of(self, dataset: str) -> dict[str, str]:
        """Returns the fields of a dataset that have other names there."""
        return column_maps(self.column, self.dataset_names)[dataset]

    def source_split_of(self, dataset: str) -> str | None:
        """Returns the split of the source asked for; None: the dataset's usual one."""
        return source_splits(self.source_split, self.dataset_names).get(dataset)

    @property
    def dataset_names(self) -> tuple[str, ...]:
        return tuple(item.partition("=")[0] for item in self.datasets)

    @property
    def sweep_threads(self) -> int:
        return self.threads or 1
