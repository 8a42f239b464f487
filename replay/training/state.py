"""The training state on disk, from which a killed run resumes bit-equal: one safetensors file, replaced atomically."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ...data.errors import CheckpointError
from ...data.files.atomic import write_atomically
from ..tables import ReplayTables

STATE_NAME = "training_state.safetensors"


def data_digest(tables: ReplayTables) -> str:
    """Returns a sha256 of what training reads from a cache, except the latency tokens, which the model determines."""
    digest = hashlib.sha256(json.dumps([list(tables.sample_ids), tables.space.to_dict()]).encode())
    for split in ("train", "val"):
        digest.update(np.ascontiguousarray(tables.indices(split)).tobytes())
    arrays = (tables.cluster_S, tables.dataset_S, tables.token_present_STPM, tables.budgets_ms_M)
    for array in (*arrays, tables.accuracy_SX, tables.latency_ms_SX, tables.language_feature_SD):
        if array is not None:
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def save_state(out: Path, identity: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Writes the state; `identity` is what a resumed run must have in common with this one."""
    metadata = {"identity": json.dumps(identity, sort_keys=True)}
    write_atomically(out / STATE_NAME, save(dict(state), metadata=metadata))


def load_state(out: Path, identity: Mapping[str, Any]) -> dict[str, Tensor] | None:
    """Returns the state of the run in `out`, None if it has none yet.

    Raises CheckpointError for an unreadable file, and for a run with another identity, naming what differs.
    """
    path = out / STATE_NAME
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            recorded = json.loads((file.metadata() or {}).get("identity", "{}"))
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError, json.JSONDecodeError) as cause:
        raise CheckpointError(f"{path} cannot be read: {cause}. Start a new run, without --resume") from cause
    wanted = json.loads(json.dumps(identity))
    different = [name for name in wanted if recorded.get(name) != wanted[name]]
    if different:
        parts = [f"{name} (recorded {_short(recorded.get(name))}, now {_short(wanted[name])})" for name in different]
        raise CheckpointError(
            f"{path} belongs to another run: {'; '.join(parts)}. Resume with the same cache and settings, or start "
            "a new run, without --resume"
        )
    return state


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
