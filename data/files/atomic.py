"""Puts bytes on disk so that a kill at any moment leaves the old state or the new one, never half of it.

Every step goes through one small object, which tests replace to fail, write short or die at each of them.
"""

from __future__ import annotations

import os
from pathlib import Path

TEMPORARY_PREFIX = ".tmp-"  # never matches `part-*.parquet`; what bears it is rubbish of a killed process


class Disk:
    """The few operations that a commit consists of."""

    def create(self, path: Path) -> int:
        """Opens a new file for writing and returns its descriptor."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_CLOEXEC", 0), 0o644)

    def write(self, descriptor: int, data: memoryview) -> int:
        """Writes some of `data` and returns how many bytes; the system may take fewer than it was given."""
        return os.write(descriptor, data)

    def sync(self, descriptor: int) -> None:
        os.fsync(descriptor)

    def replace(self, source: Path, target: Path) -> None:
        os.replace(source, target)

    def link(self, source: Path, target: Path) -> None:
        os.link(source, target)

    def unlink(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def make_directory(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)


def write_temporary(disk: Disk, directory: Path, name: str, data: bytes | memoryview) -> Path:
    """Writes `data` under a temporary name in `directory`, synced, and returns that path. Cleans up after an error."""
    path = directory / f"{TEMPORARY_PREFIX}{os.getpid()}-{name}"
    descriptor = disk.create(path)
    try:
        try:
            rest = memoryview(data)
            while rest.nbytes:
                rest = rest[disk.write(descriptor, rest) :]
            disk.sync(descriptor)
        finally:
            os.close(descriptor)
    except OSError:
        disk.unlink(path)
        raise
    return path


def write_atomically(disk: Disk, path: Path, data: bytes | memoryview) -> None:
    """Writes `data` to `path`: afterwards, and after a power cut, the file is there in full or not at all."""
    temporary = write_temporary(disk, path.parent, path.name, data)
    try:
        disk.replace(temporary, path)
    except OSError:
        disk.unlink(temporary)
        raise
    sync_directory(disk, path.parent)


def sync_directory(disk: Disk, path: Path) -> None:
    """Makes renames in `path` survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        disk.sync(descriptor)
    finally:
        os.close(descriptor)


def remove_temporaries(disk: Disk, directory: Path) -> None:
    """Removes what killed processes left half-written in `directory`. Call it with the lock held."""
    for path in directory.glob(f"{TEMPORARY_PREFIX}*"):
        if path.is_file():
            disk.unlink(path)
