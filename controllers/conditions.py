"""Under which conditions the outcomes of a cache were measured: what a request needs to be answered in the same way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from ..data.files.json_fields import JsonFields
from ..data.plans import ImportanceScores
from ..data.tasks import Task, recorded_task

if TYPE_CHECKING:
    from ..data.cache.manifest import Manifest


@dataclass(frozen=True)
class ModelIdentity:
    """The model that controllers were trained for. None where a cache does not record an entry."""

    name: str
    d_model: int
    n_blocks: int
    native_top_k: int
    fingerprint: str | None = None
    dtype: str | None = None
    family: str | None = None

    @classmethod
    def of(cls, manifest: Manifest) -> ModelIdentity:
        """Returns the model that made a cache."""
        return cls(
            manifest.model_name,
            manifest.d_model,
            manifest.n_blocks,
            manifest.native_top_k,
            manifest.fingerprint,
            manifest.dtype,
            manifest.family,
        )


@dataclass(frozen=True)
class Conditions:
    """Everything but model and setting that an outcome depends on. None where the cache does not record it."""

    importance: ImportanceScores | None = None
    prompt_template: str | None = None
    tasks: Mapping[str, Task | None] = field(default_factory=dict)  # by dataset
    device: Mapping[str, Any] | None = None  # that latencies were measured on: type, name, threads, ...
    latency_mode: str | None = None
    latency_statistic: str | None = None
    runs: int | None = None

    @classmethod
    def of(cls, manifest: Manifest, datasets: Iterable[str]) -> Conditions:
        """Returns the conditions of a cache with samples of these datasets."""
        return cls(
            manifest.importance,
            manifest.prompt_template,
            {name: recorded_task(manifest, name) for name in sorted(set(datasets))},
            manifest.device,
            manifest.latency_mode,
            manifest.latency_statistic,
            manifest.runs,
        )

    @property
    def device_name(self) -> str:
        """The device of the latencies for people, such as "Xeon (cpu, 1 thread)"."""
        if self.device is None:
            return "unknown"
        kind, threads = self.device.get("type"), self.device.get("threads")
        counted = f", {threads} thread{'' if threads == 1 else 's'}" if isinstance(threads, int) else ""
        return f"{self.device.get('name', 'unknown')} ({kind or 'unknown type'}{counted})"

    def missing(self) -> list[str]:
        """Returns what a request cannot be answered without and the cache did not record."""
        lacks = [] if self.importance is not None else ["importance scores"]
        unknown = [name for name, task in self.tasks.items() if task is None]
        if unknown or not self.tasks:
            lacks.append("prompt style, metric and token limit" + (f" of {', '.join(unknown)}" if unknown else ""))
        return lacks

    def to_dict(self) -> dict[str, Any]:
        """Returns the checkpoint's `conditions`."""
        return {
            **{name: value for name, value in vars(self).items() if name not in ("importance", "tasks")},
            "importance": None if self.importance is None else self.importance.to_dict(),
            "tasks": {name: None if task is None else asdict(task) for name, task in self.tasks.items()},
        }

    @classmethod
    def from_fields(cls, fields: JsonFields, n_blocks: int) -> Conditions:
        """Reads what `to_dict` writes from part of a file; raises the error of `fields`, with file and field."""
        importance = fields.optional("importance", lambda inner, name: ImportanceScores.from_fields(inner.fields(name)))
        if importance is not None and importance.n_blocks != n_blocks:
            raise fields.fail("importance", f"scores {importance.n_blocks} blocks, but the model has {n_blocks}")
        tasks = fields.fields("tasks")
        return cls(
            importance,
            fields.optional("prompt_template", JsonFields.text),
            {
                name: tasks.optional(name, lambda inner, key: Task.from_fields(inner.fields(key)))
                for name in fields.record("tasks")
            },
            fields.optional("device", JsonFields.record),
            fields.optional("latency_mode", JsonFields.text),
            fields.optional("latency_statistic", JsonFields.text),
            fields.optional("runs", JsonFields.count),
        )
