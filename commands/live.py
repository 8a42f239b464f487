"""Puts together what `validate --live` runs: the executor of precompute, and the engine, which times requests.

Replay knows neither: it receives both as protocols of `data/protocols.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.errors import CacheMismatch, KnobctlError
from ..data.progress import SILENT, Progress
from ..data.protocols import LEAST_RUNS, LiveFactory, LiveSystem

if TYPE_CHECKING:
    from ..controllers.conditions import Conditions
    from ..data.cache.reader import Cache


def live_system(
    controllers: Path | str,
    cache: Path,
    *,
    within: float | None = None,
    runs: int = LEAST_RUNS,
    progress: Progress = SILENT,
    **options: Any,
) -> LiveFactory:
    """Returns the `live` argument of `validate_controllers`: a function that loads the model, once, when it is called.

    Args:
        controllers: a checkpoint directory, or its name on the hub.
        within: the service level that the engine keeps, also if latencies here are not those of the cache.
        runs: runs of each request from end to end, at least 3, whose median is its latency.
        options: those of `precompute.run.live_from_cache.live_factory`: model, device, dtype, images, ...

    Raises:
        CheckpointError: questions cannot be answered with the controllers. CacheMismatch: they were trained for other
            datasets, prompts or importance scores than those of the cache. KnobctlError: `runs` is below 3.
        The returned function raises CacheError, CacheMismatch, CheckpointError and DatasetError if model and cache do
            not fit together, or lack something that a live run needs.
    """
    from ..controllers.checkpoint import Controllers
    from ..data.cache.reader import open_cache
    from ..precompute.run.live_from_cache import live_factory

    if runs < LEAST_RUNS:
        raise KnobctlError(
            f"{runs} timed runs of each live request: a single stalled run would decide the latency. Take at least "
            f"{LEAST_RUNS}, whose median is the latency."
        )
    loaded = Controllers.from_pretrained(controllers)
    loaded.require_answerable(f"the checkpoint {controllers}")
    _check_conditions(loaded.conditions, open_cache(cache, tokens=False), str(controllers))
    make = live_factory(cache, **options)

    def system(sample_ids: Sequence[str]) -> LiveSystem:
        from ..serving.engine import Engine
        from ..serving.live_timing import LiveTimer

        executor, samples = make(sample_ids)
        engine = Engine(loaded, executor.knobs.loaded, within=within, pace_required=False, progress=progress)
        return LiveSystem(executor, samples, LiveTimer(engine, runs=runs))

    return system


def _check_conditions(conditions: Conditions, cache: Cache, controllers: str) -> None:
    """Raises CacheMismatch unless the engine, which follows the controllers, runs requests as the cache's model did."""
    from ..precompute.run.live_from_cache import tasks_of

    what = "validate without --live, or train controllers on this cache"
    tasks = tasks_of(cache)
    unknown = sorted(set(tasks) - set(conditions.tasks))
    if unknown:
        raise CacheMismatch(
            f"{cache.source} has questions of {', '.join(unknown)}, but {controllers} was trained on "
            f"{', '.join(conditions.tasks)}: {what}."
        )
    other = sorted(name for name, task in tasks.items() if conditions.tasks[name] != task)
    if other:
        raise CacheMismatch(
            f"{controllers} was trained with another prompt, metric or token limit of {', '.join(other)} than "
            f"{cache.source} has: {what}."
        )
    scores = [None if one is None else one.scores for one in (conditions.importance, cache.manifest.importance)]
    if scores[0] != scores[1]:
        raise CacheMismatch(
            f"{controllers} was trained with other importance scores than those of {cache.source}, so that other "
            f"blocks would run: {what}."
        )
