"""Torch devices, dtypes and threads, shared by every package that uses torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch

from .data.errors import KnobctlError
from .data.threads import check_threads

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def find_device(name: str) -> torch.device:
    """Returns the device. Raises KnobctlError, which names `--device cpu`, when this machine does not have it."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise KnobctlError(f"device {name!r} is unknown: use cuda, cuda:0, ... or cpu.") from error
    if device.type not in ("cpu", "cuda"):
        raise KnobctlError(f"device {name!r} is not supported: use cuda or cpu (--device cpu).")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise KnobctlError("no CUDA device was found: run on the CPU with --device cpu.")
    if device.index is not None and device.type == "cuda" and device.index >= torch.cuda.device_count():
        raise KnobctlError(f"there is no device {name}: this machine has {torch.cuda.device_count()} CUDA devices.")
    return device


def find_dtype(name: str, device: torch.device) -> torch.dtype:
    """Returns the dtype by name."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if name not in _DTYPES:
        raise KnobctlError(f"dtype {name!r} is unknown: use auto, {', '.join(_DTYPES)}.")
    return _DTYPES[name]


def device_record(device: torch.device) -> dict[str, object]:
    """Returns a description of the device, which the cache records with its latencies."""
    if device.type == "cuda":
        return {"type": "cuda", "name": torch.cuda.get_device_name(device), "torch": torch.__version__}
    return {"type": "cpu", "name": _processor_name(), "threads": 1, "torch": torch.__version__}


@contextmanager
def num_threads(count: int) -> Iterator[None]:
    """Runs the body with `count` intra-op threads on the CPU, and restores the previous number, even after an error.

    Raises KnobctlError for more threads than the machine has CPUs.
    """
    before = torch.get_num_threads()
    if before == count:
        yield
        return
    check_threads(count)
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def single_thread() -> AbstractContextManager[None]:
    """Runs the body on one thread, so that sums are made in the same order on every machine."""
    return num_threads(1)


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "CPU"
