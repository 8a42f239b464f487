"""Parts of runs that an earlier version divided: each process wrote a share of its own beside the cache.

A run started with `--workers` or `torchrun` by that version continues here with what it has committed.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...data.cache.manifest import MANIFEST_NAME, RUN_NAME, Manifest
from ...data.cache.parts import SAMPLES, part_paths, read_part
from ...data.cache.run_record import as_read, differences, read_run
from ...data.cache.writer import CacheWriter
from ...data.errors import CacheMismatch
from ..run.fixed import Fixed
from ..run.journal import Journal


def fixed_by_shares(out: Path) -> Fixed | None:
    """Returns what the shares beside the cache `out` have fixed; None if there are none."""
    return next((Fixed.read(share) for share in _shares(out)), None)


def adopt_shares(writer: CacheWriter, record: Mapping[str, Any]) -> None:
    """Commits the parts of the shares beside the cache, and removes these shares. Repeating it after a kill is safe.

    Raises:
        CacheMismatch: a share is of another run.
    """
    journal, done = Journal(writer.out), writer.done_samples()
    for share in _shares(writer.out):
        differing = list(differences(read_run(share)[0], as_read(record)))
        if differing:
            raise CacheMismatch(
                f"{share} was started with other parameters: {'; '.join(differing)}. Use the same ones, or remove it."
            )
        parts = part_paths(share, SAMPLES)
        for path in parts:
            ids = set(read_part(share, path, ["sample_id"]).column("sample_id").to_pylist())
            if ids <= done:
                continue
            part = writer.next_part()
            writer.adopt_part(share, path.name, part)
            with writer.disk_errors():
                journal.adopt(share, path.name, part)
                if path == parts[-1] and (share / MANIFEST_NAME).is_file():  # which has replaced the journal
                    journal.append_record({"part": part, **Manifest.read(share).extra["execution"], "checks": []})
            done |= ids
    for kind in ("workers", "ranks"):
        shutil.rmtree(_home(writer.out, kind), ignore_errors=True)


def _home(out: Path, kind: str) -> Path:
    return out.parent / f"{out.name}.{kind}"


def _shares(out: Path) -> Iterator[Path]:
    for kind in ("workers", "ranks"):
        for share in sorted(_home(out, kind).glob("*-of-*")):
            if (share / RUN_NAME).is_file():
                yield share
