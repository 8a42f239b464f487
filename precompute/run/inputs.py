"""What a run depends on, fixed before its first part: model, samples, importance scores, budgets, encoder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from ...controllers.budget_encoder import BudgetEncoder
from ...data.cache.run_record import read_run
from ...data.datasets.sample_set import SampleSet, load_samples
from ...data.errors import CacheError, DatasetError, ImportanceError, KnobctlError
from ...data.files.json_fields import JsonFields
from ...data.importer import load_importance, save_importance
from ...data.plans import ImportanceScores
from ...data.samples import Sample
from ...devices import device_record
from ..execution.knob_model import KnobModel, Task, check_importance, check_input, check_space
from ..models.loading import LoadedModel, load_model
from ..models.progress import progress_bar, say
from .config import PrecomputeConfig
from .importance import DEFAULT_RUNS, choose_importance_samples, measure_importance, scores_path
from .pilot import PILOT_SAMPLES, parse_budgets, run_pilot


@dataclass(frozen=True)
class Fixed:
    """What a run measures once and every part, rank and shard then reads."""

    importance: ImportanceScores
    budgets_ms: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """As `run.json` holds it."""
        return {"importance": self.importance.to_dict(), "budgets_ms": list(self.budgets_ms)}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any], where: str) -> Fixed:
        """The opposite of `to_dict`. Raises CacheError, naming `where`, when it is not that."""
        fields = JsonFields(record, where, CacheError)
        importance = ImportanceScores.from_fields(fields.fields("importance"))
        return cls(importance, tuple(fields.each("budgets_ms", JsonFields.number)))


@dataclass(frozen=True)
class Inputs:
    """Model and samples of a run."""

    loaded: LoadedModel
    sets: tuple[SampleSet, ...]

    @property
    def tasks(self) -> dict[str, Task]:
        return {one.name: Task(one.metric, one.max_new_tokens, one.style) for one in self.sets}

    @property
    def samples(self) -> list[Sample]:
        """All samples by id: the order of work, whatever the number of ranks."""
        return sorted((sample for one in self.sets for sample in one.samples), key=lambda sample: sample.sample_id)


def load_inputs(config: PrecomputeConfig) -> Inputs:
    """Loads model and samples, and checks that they and the knob space fit.

    Raises:
        KnobctlError: whatever is wrong with a name, a file or a value.
    """
    loaded = load_model(config.model, revision=config.revision, device=config.device, dtype=config.dtype)
    check_space(config.space, loaded)
    sets = []
    for item in config.datasets:
        name, _, source = item.partition("=")
        one = load_samples(
            name,
            root=config.data_root,
            source=source or None,
            images=config.images,
            source_split=config.source_split_of(name),
            columns=config.columns_of(name),
            limit=config.samples_of(name),
            seed=config.seed,
            metric=config.metrics.get(name),
            max_new_tokens=config.max_new_tokens.get(name),
            skip_bad=config.skip_bad,
            check_input=partial(check_input, loaded, config.space),
        )
        for warning in one.warnings:
            say(f"{name}: {warning}")
        sets.append(one)
    inputs = Inputs(loaded, tuple(sets))
    ids = [sample.sample_id for sample in inputs.samples]
    for first, second in pairwise(ids):
        if first == second:
            raise DatasetError(f"sample {first} is there twice: leave one of its sources out.")
    check_shares(len(ids), config.shard.count)
    return inputs


def check_shares(samples: int, count: int) -> None:
    """Raises KnobctlError where some shard or rank would have no sample: a cache without rows cannot be merged."""
    if count > samples:
        raise KnobctlError(f"{samples} samples cannot be divided among {count} shards or ranks: use fewer.")


def request_record(config: PrecomputeConfig, inputs: Inputs, results_sha256: str | None = None) -> dict[str, Any]:
    """Returns what the run was asked for, as far as rows depend on it; `results_sha256` stands for recorded results."""
    loaded = inputs.loaded
    datasets = {}
    for one in inputs.sets:
        record = one.to_dict()
        datasets[one.name] = {
            name: value for name, value in record.items() if name not in ("source", "images", "skipped")
        }
    return {
        "model": {"name": loaded.name, "fingerprint": loaded.fingerprint, "dtype": dtype_name(loaded)},
        "device": device_record(loaded.model.device),
        "datasets": datasets,
        "knobs": config.space.to_dict(),
        "latency_mode": "imported" if config.imported_latency else config.latency_mode,
        "runs": config.runs,
        "checks_per_tiling": config.checks_per_tiling,
        "seed": config.seed,
        "budgets": list(config.budgets),
        "importance": None if config.importance is None else _digest(config.importance),
        "importance_samples": config.importance_samples,
        "results": None
        if config.from_results is None
        else {
            "complete": config.complete,
            "imported_latency": config.imported_latency,
            "sources_sha256": results_sha256,
        },
    }


def dtype_name(loaded: LoadedModel) -> str:
    """The dtype's name without its module, `float32`."""
    return str(loaded.model.dtype).removeprefix("torch.")


def encoder_of(config: PrecomputeConfig, inputs: Inputs) -> BudgetEncoder:
    """The frozen budget encoder: the run's seed makes it."""
    return BudgetEncoder.from_seed(inputs.loaded.model.config.d_model, config.seed)


def knob_model(config: PrecomputeConfig, inputs: Inputs, fixed: Fixed) -> KnobModel:
    """Returns the model with this run's knobs."""
    return KnobModel(
        inputs.loaded,
        space=config.space,
        importance=fixed.importance,
        encoder=encoder_of(config, inputs),
        tasks=inputs.tasks,
        budgets_ms=fixed.budgets_ms,
    )


def fixed_before(config: PrecomputeConfig) -> Fixed | None:
    """Returns what an earlier start of this run, or the shard named by `like`, has fixed; None at a first start."""
    for directory in (config.out, config.like):
        if directory is not None and (directory / "run.json").is_file():
            run, _ = read_run(directory)
            return Fixed.from_dict(run, str(directory / "run.json"))
        if directory is not None and directory == config.like:
            raise CacheError(f"--like {directory} has no run.json: start that shard first.")
    return None


def fix(config: PrecomputeConfig, inputs: Inputs) -> Fixed:
    """Measures or reads what the run depends on: importance scores, then budgets, which the pilot times with them."""
    importance = find_importance(config, inputs)
    knobs = knob_model(config, inputs, Fixed(importance, (1.0,)))

    def pilot() -> Any:
        with progress_bar("pilot", min(PILOT_SAMPLES, len(inputs.samples))) as advance:
            return run_pilot(knobs, inputs.samples, seed=config.seed, on_sample=advance)

    if config.budgets:
        return Fixed(importance, parse_budgets(config.budgets, lambda: pilot().full_mean_ms))
    return Fixed(importance, pilot().grid())


def find_importance(config: PrecomputeConfig, inputs: Inputs) -> ImportanceScores:
    """Returns the scores of the file that was named, those kept beside the model, or new ones.

    Raises:
        ImportanceError: a file's scores are not this model's, or there are too few training samples.
    """
    loaded = inputs.loaded
    if config.importance is not None:
        scores = load_importance(config.importance, n_blocks=loaded.model.config.num_blocks)
        check_importance(scores, loaded)
        return scores
    drawn = choose_importance_samples(
        inputs.samples, limit=config.importance_samples, runs=DEFAULT_RUNS, seed=config.seed
    )
    kept = scores_path(loaded, importance_key(config, inputs, drawn))
    if kept is not None and kept.is_file():
        return load_importance(kept, n_blocks=loaded.model.config.num_blocks)
    with progress_bar("importance", len(drawn)) as advance:
        scores = measure_importance(
            loaded,
            drawn,
            inputs.tasks,
            space=config.space,
            threads=config.sweep_threads,
            on_sample=advance,
        )
    if kept is not None:
        try:
            save_importance(scores, kept)
        except ImportanceError as error:
            say(f"the next run measures the importance scores again: {error}")
    return scores


def importance_key(config: PrecomputeConfig, inputs: Inputs, drawn: list[Sample]) -> str:
    """A digest of what measured scores depend on."""
    content = [
        inputs.loaded.fingerprint,
        dtype_name(inputs.loaded),
        config.space.to_dict().get("tier_crops"),
        [[sample.sample_id, sample.image_id, sample.question, list(sample.answers)] for sample in drawn],
        {name: asdict(task) for name, task in inputs.tasks.items()},
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise CacheError(f"{path} cannot be read: {error.strerror or error}.") from error
