"""What is fixed before the first part of a run: importance scores, budgets, and the record in `run.json`."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...data.budgets import normalise_budgets
from ...data.cache.manifest import RUN_NAME
from ...data.cache.run_record import read_run
from ...data.errors import CacheError
from ...data.files.json_fields import JsonFields
from ...data.plans import ImportanceScores
from ...data.progress import SILENT, Progress
from ...devices import device_record
from .config import PrecomputeConfig
from .importance import find_importance
from .inputs import Inputs, dtype_name
from .pilot import PILOT_SAMPLES, Pilot, parse_budgets, run_pilot


@dataclass(frozen=True)
class Fixed:
    """What a run measures once; every part and every shard then uses it."""

    importance: ImportanceScores
    budgets_ms: tuple[float, ...]  # normalised

    def to_dict(self) -> dict[str, Any]:
        """Returns the entries of `run.json`."""
        return {"importance": self.importance.to_dict(), "budgets_ms": list(self.budgets_ms)}

    @classmethod
    def read(cls, directory: Path) -> Fixed:
        """Reads the `run.json` of a cache. Raises CacheError if it lacks these entries or is malformed."""
        run, _ = read_run(directory)
        fields = JsonFields(run, str(directory / RUN_NAME), CacheError)
        importance = ImportanceScores.from_fields(fields.fields("importance"))
        return cls(importance, normalise_budgets(fields.each("budgets_ms", JsonFields.number)))


def fixed_of(config: PrecomputeConfig, inputs: Inputs, progress: Progress = SILENT) -> Fixed:
    """Returns what an earlier start of this run, or the shard named by `like`, has fixed; otherwise measures it."""
    return fixed_before(config) or fix(config, inputs, progress)


def fixed_before(config: PrecomputeConfig) -> Fixed | None:
    """Returns what an earlier start of this run, or the shard named by `like`, has fixed; None at the first start."""
    for directory in (config.out, config.like):
        if directory is not None and (directory / RUN_NAME).is_file():
            return Fixed.read(directory)
        if directory is not None and directory == config.like:
            raise CacheError(f"--like {directory} has no {RUN_NAME}: start that shard first.")
    return None


def fix(config: PrecomputeConfig, inputs: Inputs, progress: Progress = SILENT) -> Fixed:
    """Finds the importance scores, then the budgets, which the pilot times with these scores."""
    importance = find_importance(config, inputs, progress)
    knobs = inputs.knobs.with_run(importance)

    def pilot() -> Pilot:
        with progress.steps("pilot", min(PILOT_SAMPLES, len(inputs.samples))) as advance:
            return run_pilot(knobs, inputs.samples, seed=config.seed, on_sample=advance)

    if config.budgets:
        return Fixed(importance, parse_budgets(config.budgets, lambda: pilot().full_mean_ms))
    return Fixed(importance, pilot().grid())


def run_record(
    config: PrecomputeConfig, inputs: Inputs, fixed: Fixed, results_sha256: str | None = None
) -> dict[str, Any]:
    """Returns the content of `run.json`: what was requested, as far as rows depend on it, and what was fixed.

    Args:
        results_sha256: digest of the recorded results, where there are any.
    """
    loaded = inputs.loaded
    datasets = {}
    for one in inputs.sets:
        record = one.to_dict()
        datasets[one.name] = {
            name: value for name, value in record.items() if name not in ("source", "images", "skipped")
        }
    request = {
        "model": {"name": loaded.name, "fingerprint": loaded.fingerprint, "dtype": dtype_name(loaded)},
        "device": device_record(loaded.model.device),
        "datasets": datasets,
        "knobs": inputs.knobs.space.to_dict(),
        "latency_mode": config.manifest_latency_mode,
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
    return {"request": request, **fixed.to_dict()}


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise CacheError(f"{path} cannot be read: {error.strerror or error}.") from error
