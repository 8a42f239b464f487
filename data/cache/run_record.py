"""`run.json`: what a run depends on, written before anything else, so that a run is resumed with the same inputs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import CacheError, CacheMismatch
from ..files.atomic import TEMPORARY_PREFIX, Disk, write_atomically
from ..files.bounded_json import dump_json, read_json
from ..files.json_fields import JsonFields
from ..files.lock import LOCK_NAME
from .manifest import MANIFEST_NAME, RUN_NAME
from .shard import Shard

RUN_FORMAT = "knobctl-run"
RUN_VERSION = 1
MAX_DIFFERENCES = 8


def read_run(directory: Path) -> tuple[dict[str, Any], Shard]:
    """Returns what the run in `directory` depends on, and its shard. Raises CacheError if knobctl did not write it."""
    path = directory / RUN_NAME
    record = read_json(path, CacheError)
    if not isinstance(record, dict) or record.get("format") != RUN_FORMAT:
        raise CacheError(f"{path} was not written by knobctl: choose another directory")
    fields = JsonFields(record, str(path), CacheError)
    version = fields.integer("version")
    if version != RUN_VERSION:
        raise fields.fail("version", f"is {version}, but this knobctl reads version {RUN_VERSION}")
    shard = fields.optional("shard", JsonFields.fields)
    return fields.record("run"), Shard() if shard is None else Shard(shard.integer("index"), shard.integer("count"))


def begin_run(disk: Disk, directory: Path, run: Mapping[str, Any], shard: Shard) -> bool:
    """Writes `run.json`, or checks that an existing one is equal. Returns whether it existed.

    Raises:
        CacheError: The directory contains something else.
        CacheMismatch: The directory contains another run; names what differs.
    """
    if (directory / RUN_NAME).exists():
        check_same_run(directory, run, shard)
        return True
    others = sorted(p.name for p in directory.iterdir() if p.name != LOCK_NAME and not _is_temporary(p))
    if others:
        what = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
        hint = " (a cache of another program)" if MANIFEST_NAME in others else ""
        raise CacheError(f"{directory} contains something else{hint}: {what}. Choose an empty or a new directory.")
    record: dict[str, Any] = {"format": RUN_FORMAT, "version": RUN_VERSION}
    if shard.count > 1:
        record["shard"] = {"index": shard.index, "count": shard.count}
    write_atomically(directory / RUN_NAME, dump_json({**record, "run": as_read(run)}), disk)
    return False


def check_same_run(directory: Path, run: Mapping[str, Any], shard: Shard) -> None:
    """Raises CacheMismatch, naming the differences, if `directory` was started with another run or shard."""
    found, found_shard = read_run(directory)
    differing = list(differences(found, as_read(run)))
    if found_shard != shard:
        differing.insert(0, f"shard: {found_shard} there, {shard} now")
    if differing:
        more = "" if len(differing) <= MAX_DIFFERENCES else f"; and {len(differing) - MAX_DIFFERENCES} more"
        raise CacheMismatch(
            f"{directory} was started with other parameters: {'; '.join(differing[:MAX_DIFFERENCES])}{more}. "
            "Use the same ones to resume, or another directory."
        )


def as_read(run: Mapping[str, Any]) -> Any:
    """Returns `run` as it will be read back: tuples become lists."""
    return json.loads(json.dumps(run, allow_nan=False))


def _is_temporary(path: Path) -> bool:
    return path.name.startswith(TEMPORARY_PREFIX) and path.is_file()


def differences(found: Any, wanted: Any, path: str = "") -> Iterator[str]:
    """Yields a line for each difference between two JSON values: `model.fingerprint: "a" there, "b" now`."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for name in sorted(found.keys() | wanted.keys()):
            inner = f"{path}.{name}" if path else name
            if name not in found or name not in wanted:
                yield f"{inner}: {_short(found.get(name))} there, {_short(wanted.get(name))} now"
            else:
                yield from differences(found[name], wanted[name], inner)
    elif isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted) and found != wanted:
        for index, (left, right) in enumerate(zip(found, wanted, strict=True)):
            yield from differences(left, right, f"{path}[{index}]")
    elif found != wanted or type(found) is not type(wanted):
        yield f"{path}: {_short(found)} there, {_short(wanted)} now"


def _short(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
