"""Which models have passed their checks on this machine, so that each is checked once."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import torch
import transformers

from ....data.files.atomic import write_atomically

CHECKS_VERSION = 1  # raised when a check or the execution changes, so that models are checked again


def is_verified(fingerprint: str, device: torch.device) -> bool:
    """Returns whether a model with this fingerprint has passed with the same libraries and kind of device."""
    return _record(fingerprint, device).is_file()


def mark_verified(fingerprint: str, device: torch.device) -> None:
    """Remembers that a model has passed. A folder that cannot be written means that it is checked again."""
    path = _record(fingerprint, device)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(_versions(device)).encode())
    except OSError:
        return


def _record(fingerprint: str, device: torch.device) -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    key = hashlib.sha256(f"{fingerprint} {json.dumps(_versions(device), sort_keys=True)}".encode()).hexdigest()
    return Path(root) / "knobctl" / "checked-models" / f"{key[:32]}.json"


def _versions(device: torch.device) -> dict[str, object]:
    return {
        "checks": CHECKS_VERSION,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": device.type,
    }
