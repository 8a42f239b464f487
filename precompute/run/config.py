"""The configuration of a precompute run. The command line fills it in; the run records what its rows depend on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ...data.cache.shard import Shard
from ...data.datasets.registry import parse_dataset_option
from ...data.datasets.source_options import column_maps, instructions, source_splits
from ...data.errors import KnobctlError
from ...data.knobs import KnobSpace
from ...data.threads import check_threads

MEASURED_MODES = ("blockwise", "end_to_end")
PART_SAMPLES = 16


@dataclass(frozen=True)
class PrecomputeConfig:
    """One `knobctl precompute` with a model."""

    # Metadata describes the command-line options: see `commands/config_options.py`.
    model: str = field(
        metadata={"help": "`nano`, a checkpoint directory, or a hub id.", "type": "path or name"},
    )
    datasets: tuple[str, ...] = field(
        metadata={
            "help": "A dataset that knobctl knows, or your own file.",
            "option": "dataset",
            "type": "path or name",
            "metavar": "NAME[=PATH]",
        },
    )
    out: Path = field(
        metadata={"help": "Directory of the cache. Run the same command again to resume an interrupted run."}
    )
    # None, or a dataset that the mapping leaves out: all samples.
    samples: int | Mapping[str, int] | None = field(
        default=None,
        metadata={"help": "Samples per dataset, or of some datasets by name, drawn at random.  [default: all]"},
    )
    revision: str | None = field(default=None, metadata={"help": "Revision of a model from the hub."})
    device: str = field(default="cuda", metadata={"help": "cuda, cuda:1, ... or cpu."})
    dtype: str = field(
        default="auto",
        metadata={"help": "auto, float32, bfloat16 or float16; auto is float32 on the CPU and bfloat16 on a GPU."},
    )
    seed: int = field(
        default=42, metadata={"help": "Seed of the sample draw, the pilot samples and the budget encoder."}
    )
    space: KnobSpace | None = None  # None: given by the next four, which start from the model's default knobs
    tiers: str = field(
        default="",
        metadata={
            "help": "Default tiers by name, or NAME=MIN-MAX of your own: crops for MolmoE, visual tokens for others.  "
            "[default: the model's, as `knobctl check-model` shows]",
        },
    )
    positions: str = field(
        default="", metadata={"help": "Insertion positions.  [default: the model's; MolmoE: 1 to 5]"}
    )
    top_k: str = field(default="", metadata={"help": "Experts per token.  [default: the model's; MolmoE: 4 to 8]"})
    num_blocks: str = field(
        default="", metadata={"help": "Blocks run in total.  [default: the model's; MolmoE: 12 to 16]"}
    )
    prompt: tuple[str, ...] = field(
        default=(),
        metadata={
            "help": "Instruction put with every question, or with those of one dataset.  [default: for MolmoE the "
            "dataset's style, for others a request for a short answer]",
            "metavar": "[DATASET=]TEXT",
        },
    )
    # Empty: a grid from the latencies of the pilot samples.
    budgets: tuple[str, ...] = field(
        default=(),
        metadata={
            "help": "Budgets in ms, or as multiples of the full setting's latency: 40,80,0.5x  [default: a grid of 16]",
            "type": "list",
        },
    )
    latency_mode: str = field(
        default="blockwise",
        metadata={"help": "blockwise, or end_to_end: time every setting on its own (slow)."},
    )
    runs: int = field(default=5, metadata={"help": "Timed runs of each latency."})
    checks_per_tiling: int = 1  # blockwise: settings of each tiling that are also run end to end
    importance: Path | None = field(
        default=None,
        metadata={"help": "File of importance scores, in any layout that knobctl reads.  [default: measured]"},
    )
    importance_samples: int = 200
    data_root: Path | None = field(
        default=None, metadata={"help": "Folder of the official annotation files and images."}
    )
    images: Path | None = field(
        default=None, metadata={"help": "Folder to which the datasets' image paths are relative."}
    )
    metrics: Mapping[str, str] = field(
        default_factory=dict,
        metadata={
            "help": "Score a dataset with a metric other than its own.",
            "option": "metric",
            "metavar": "DATASET=METRIC",
        },
    )
    max_new_tokens: Mapping[str, int] = field(
        default_factory=dict,
        metadata={
            "help": "Limit of answer tokens for a dataset.  [default: the dataset's for MolmoE, 32 for other models]",
            "metavar": "DATASET=N",
        },
    )
    column: tuple[str, ...] = field(
        default=(),
        metadata={
            "help": "Column that holds a field under another name: answers=multiple_choice_answer.",
            "metavar": "[DATASET.]FIELD=COLUMN",
        },
    )
    source_split: tuple[str, ...] = field(
        default=(),
        metadata={
            "help": "Split of the files to read; `all`: every row.  [default: the dataset's usual one]",
            "metavar": "[DATASET=]SPLIT",
        },
    )
    skip_bad: bool = field(default=False, metadata={"help": "Skip, and count, rows that cannot be read or run."})
    shard: Shard = field(
        default_factory=Shard,
        metadata={"help": "i/n: run only this share of the samples; `knobctl merge` joins the shards."},
    )
    like: Path | None = field(
        default=None,
        metadata={"help": "Directory of shard 0, from which other shards take budgets and importance scores."},
    )
    part_samples: int = PART_SAMPLES
    # Of the answer sweep on the CPU; None: one. A second thread busy-waits: on a busy machine it took 4 to 20 times the
    # CPU time (measured on two cores), and on an idle machine it speeds up only a small part of a run.
    threads: int | None = field(
        default=None, metadata={"help": "CPU threads of the answer sweep.  [default: 1]", "type": "count"}
    )
    workers: int | None = field(
        default=None,
        metadata={
            "help": "Processes that share the samples.  [default: 1; with --ray, as many as the cluster has room for]",
            "type": "count",
        },
    )
    ray: str | None = field(
        default=None,
        metadata={
            "help": "Run on a Ray cluster: HOST:PORT, auto (that of this machine), or local (starts one).",
            "metavar": "[ADDRESS]",
            "without value": "auto",
        },
    )
    ray_wait: float = field(
        default=300.0, metadata={"help": "Seconds to wait for the cluster to have room for a first worker."}
    )
    stall_timeout: float = field(
        default=1800.0,
        metadata={"help": "Seconds after which a worker that has finished no sample is ended and replaced."},
    )
    # Recorded results of other runs: see `recorded.py`.
    from_results: Path | None = field(
        default=None, metadata={"help": "Directory of recorded results, one JSON file per configuration."}
    )
    complete: bool = field(
        default=False,
        metadata={"help": "With --from-results and --model: run the settings that the results do not contain."},
    )
    imported_latency: bool = field(
        default=False,
        metadata={
            "help": "With --from-results: latencies to store, measured on this machine or imported from the results.",
            "option": "latency",
            "choices": {"measured": False, "imported": True},
        },
    )
    strict: bool = field(default=False, metadata={"help": "With --from-results: stop at any error in the files."})

    def __post_init__(self) -> None:
        """Raises KnobctlError for invalid values."""
        if not self.datasets:
            raise KnobctlError("no dataset was named: give at least one with --dataset NAME.")
        if len(self.dataset_sources) != len(self.datasets):
            raise KnobctlError(f"a dataset was named twice: {', '.join(self.datasets)}.")
        if self.latency_mode not in MEASURED_MODES:
            raise KnobctlError(f"latency mode {self.latency_mode!r} is unknown: use {' or '.join(MEASURED_MODES)}.")
        check_threads(self.sweep_threads)
        for name in ("runs", "part_samples", "importance_samples", "num_workers"):
            if getattr(self, name) < 1:
                raise KnobctlError(f"{name} must be at least 1, not {getattr(self, name)}.")
        for name in ("ray_wait", "stall_timeout"):
            if not getattr(self, name) > 0:
                raise KnobctlError(f"--{name.replace('_', '-')} must be above 0 s, not {getattr(self, name)}.")
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
        column_maps(self.column, self.dataset_names)  # these raise for malformed options
        source_splits(self.source_split, self.dataset_names)
        instructions(self.prompt, self.dataset_names)
        if self.from_results is None and (self.complete or self.imported_latency or self.strict):
            raise KnobctlError("--complete, --latency imported and --strict need recorded results: add --from-results.")
        if self.complete and self.imported_latency:
            raise KnobctlError(
                "--complete measures latencies, --latency imported keeps recorded ones: use one of them."
            )
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

    def space_for(self, default: KnobSpace) -> KnobSpace:
        """Returns the knob space of a model with these default knobs. Raises UnknownSetting for malformed options."""
        if self.space is not None:
            return self.space
        return KnobSpace.from_options(self.tiers, self.positions, self.top_k, self.num_blocks, default=default)

    def instruction_of(self, dataset: str) -> str | None:
        """Returns the instruction requested for a dataset's questions; None: the usual one."""
        return instructions(self.prompt, self.dataset_names).get(dataset)

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
    def num_workers(self) -> int:
        """Worker processes of this machine."""
        return 1 if self.workers is None else self.workers

    @property
    def sweep_threads(self) -> int:
        """Threads of the answer sweep."""
        return self.threads or 1
