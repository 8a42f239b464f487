"""What `knobctl check-model` reports: a model's geometry, memory, default knobs, and the checks on its real weights."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from ...data.progress import SILENT, Progress
from ..models.checks import ModelRefused
from ..models.loading import load_model
from .forecast import peak_memory
from .inputs import dtype_name


def report_on_model(
    name: str,
    *,
    revision: str | None = None,
    device: str = "cuda",
    dtype: str = "auto",
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Loads a model and runs its checks, whether or not it has passed before.

    Args:
        revision, device, dtype: as for `load_model`.

    Returns:
        JSON-able: geometry, memory, default knobs, checks; `refused` is None, or says which check failed.

    Raises:
        CheckpointError: the model cannot be loaded.
    """
    started = time.perf_counter()
    loaded = load_model(name, revision=revision, device=device, dtype=dtype, check=False, progress=progress)
    loading_s = time.perf_counter() - started
    model, geometry, refused = loaded.model, loaded.model.geometry, None
    try:
        checks = model.check()
    except ModelRefused as error:
        checks, refused = error.checks, str(error)
    space = model.default_knobs()
    return {
        "model": name,
        "family": geometry.family,
        "fingerprint": geometry.fingerprint,
        "dtype": dtype_name(loaded),
        "device": str(model.device),
        "geometry": {
            "d_model": geometry.d_model,
            "n_blocks": geometry.n_blocks,
            "native_top_k": list(geometry.native_top_k),
            "n_experts": geometry.n_experts,
            "always_run": sorted(geometry.always_run),
            "max_positions": geometry.max_positions,
        },
        "memory_mib": {
            "weights": geometry.weight_bytes / 2**20,
            **{f"peak {kind}": count / 2**20 for kind, count in peak_memory(model.device).items()},
        },
        "default_knobs": {**space.to_dict(), "settings": len(space.settings)},
        "checks": [asdict(check) for check in checks],
        "loading_seconds": loading_s,
        "refused": refused,
    }
