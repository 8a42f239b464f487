"""What all questions of a dataset share: how they are asked, how long an answer may be, and how it is scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .datasets.registry import DATASETS
from .files.json_fields import JsonFields

if TYPE_CHECKING:
    from .cache.manifest import Manifest

MAX_NEW_TOKENS = 1 << 16


@dataclass(frozen=True)
class Task:
    """The settings of a dataset's questions."""

    metric: str
    max_new_tokens: int
    style: str | None  # prefix of the question in the prompt; None: no prefix
    instruction: str | None = None  # text for models that are told how to answer; None: none

    @classmethod
    def from_fields(cls, fields: JsonFields) -> Task:
        """Reads an object with these fields; raises the error of `fields`, with file and field."""
        return cls(
            fields.text("metric"),
            fields.integer("max_new_tokens", 1, MAX_NEW_TOKENS),
            fields.optional("style", JsonFields.text),
            fields.optional("instruction", JsonFields.text),
        )


def recorded_task(manifest: Manifest, dataset: str) -> Task | None:
    """Returns a dataset's task: the cache's if recorded, else that of the dataset known by this name.

    None if neither gives both metric and token limit, as in caches of other programs and of imported results.
    """
    record: Mapping[str, Any] = (manifest.datasets or {}).get(dataset, {})
    spec = DATASETS.get(dataset)
    limits = manifest.max_new_tokens
    limit = (limits.get(dataset) if isinstance(limits, dict) else limits) or (spec.max_new_tokens if spec else None)
    metric = record.get("metric") or (spec.metric if spec else None)
    if not isinstance(metric, str) or type(limit) is not int or not 1 <= limit <= MAX_NEW_TOKENS:
        return None
    return Task(metric, limit, record.get("style", spec.style if spec else None), record.get("instruction"))
