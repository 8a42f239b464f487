"""Writes files so that a crash at any moment leaves the old content or the new, never a mixture.

Every step goes through `Disk`, which tests replace to fail, write short or stop at any of them.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

TEMPORARY_PREFIX = ".tmp-"  # files with this prefix are leftovers of a killed process; `part-*.parquet` never matches


class Disk:
    """The system calls that a commit consists of."""

    def create(self, path: Path) -> int:
        """Opens a new file for writing and returns its descriptor."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_CLOEXEC", 0), 0o644)

    def write(self, descriptor: int, data: memoryview) -> int:
        """Writes the beginning of `data` and returns how many bytes; the system may take fewer than it was given."""
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


DISK = Disk()


def write_atomically(path: Path, data: bytes | memoryview, disk: Disk = DISK) -> None:
    """Replaces the content of `path` with `data`, in full or not at all, even after a power cut. Raises OSError.

    Its directory must exist. Safe for several processes and threads at once: the last one to finish wins.
    """
    temporary = write_temporary(path.parent, path.name, data, disk)
    try:
        disk.replace(temporary, path)
    except OSError:
        disk.unlink(temporary)
        raise
    sync_directory(path.parent, disk)


def write_temporary(directory: Path, name: str, data: bytes | memoryview, disk: Disk = DISK) -> Path:
    """Writes `data` to a new temporary file in `directory`, synced, and returns its path; removes it after an error."""
    path = directory / f"{TEMPORARY_PREFIX}{os.getpid()}-{threading.get_native_id()}-{name}"
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


def sync_directory(path: Path, disk: Disk = DISK) -> None:
    """Makes the renames done in directory `path` survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        disk.sync(descriptor)
    finally:
        os.close(descriptor)


def remove_temporaries(directory: Path, disk: Disk = DISK) -> None:
    """Removes the temporary files that killed processes left in `directory`. The caller holds the directory's lock."""
    for path in directory.glob(f"{TEMPORARY_PREFIX}*"):
        if path.is_file():
            disk.unlink(path)
