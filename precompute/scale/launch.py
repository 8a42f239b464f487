"""`knobctl precompute` with a model: the frozen model under every knob setting of every sample, into a cache."""

from __future__ import annotations

from typing import Any

from ...data.cache.manifest import MANIFEST_NAME
from ...data.errors import KnobctlError
from ...data.progress import SILENT, Progress
from ..run.config import PrecomputeConfig
from ..run.interrupt import Interrupted
from .alone import Alone
from .coordinator import Coordinator
from .processes import Processes
from .ranks import Launch, precompute_ranks

__all__ = ["Interrupted", "PrecomputeConfig", "precompute"]


def precompute(config: PrecomputeConfig, progress: Progress = SILENT) -> dict[str, Any]:
    """Runs the model under every knob setting of every sample and writes the cache. Returns a JSON-able summary.

    Called again with the same config, it resumes, with any number of processes. They are those of `torchrun`, of
    `config.workers`, or the workers of the Ray cluster that `config.ray` names.

    Raises:
        KnobctlError: a problem the user can fix; Interrupted after SIGINT.
    """
    launch = Launch.from_environment()
    if launch is not None:
        launch.check(config)
        progress = progress if launch.rank == 0 else SILENT
    is_complete = (config.out / MANIFEST_NAME).is_file()  # so that nothing but the request is checked
    if launch is not None and not is_complete:
        return precompute_ranks(config, launch, progress)
    if config.ray is not None:
        try:
            from .ray_actors import RayActors
        except ModuleNotFoundError as error:
            raise KnobctlError("--ray needs the package ray: pip install 'knobctl[ray]'.") from error
        with RayActors(config) as actors:
            return Coordinator(config, actors, progress).run()
    if config.num_workers > 1 and not is_complete:
        with Processes(config, config.num_workers) as processes:
            return Coordinator(config, processes, progress).run()
    return Coordinator(config, Alone(config), progress).run()
