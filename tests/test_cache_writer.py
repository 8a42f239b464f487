"""Whatever happens during a commit, a resumed run ends with the same rows, none missing and none duplicated."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pyarrow as pa
import pytest

from knobctl.data.cache.reader import open_cache
from knobctl.data.cache.writer import CacheWriter
from knobctl.data.errors import CacheError, CacheMismatch
from knobctl.data.files.atomic import Disk
from knobctl.tests.support.caches import (
    BUDGETS_MS,
    TINY_SPACE,
    QuickDisk,
    make_cache,
    outcome_table,
    sample_table,
    tiny_manifest,
    token_table,
)

RUN = {"seed": 1, "model": {"fingerprint": "abc"}, "budgets_ms": [20.0, 40.0, 80.0]}
IDS = ["s1", "s2"]


@cache
def tables(name: str) -> tuple[pa.Table, pa.Table, pa.Table]:
    samples, outcomes = sample_table([name], 4), outcome_table([name], TINY_SPACE)
    return samples, outcomes, token_table([name], TINY_SPACE, BUDGETS_MS, 4)


def write(out: Path, disk: Disk | None = None) -> list[str]:
    """Writes two samples, one part each, skipping committed ones as `precompute` does. Returns the samples written."""
    written = []
    with CacheWriter(out, RUN, disk=disk or QuickDisk()) as writer:
        if writer.complete:
            return []
        done = writer.done_samples()
        for name in IDS:
            if name not in done:
                writer.write_part(*tables(name))
                written.append(name)
        writer.finish(tiny_manifest(d_model=4), b"encoder")
    return written


def rows(path: Path) -> tuple:
    cache = open_cache(path, derived=path / "none")
    tokens = {
        place: row.tobytes() for cell, value in cache.tokens.batches() for place, row in zip(cell, value, strict=True)
    }
    return cache.sample_ids, cache.fingerprint, cache.latency_ms_SX.tobytes(), tokens


class FaultyDisk(QuickDisk):
    """Fails at step number `at`, in one of several ways, and counts its steps."""

    def __init__(self, at: int = -1, way: str = "error") -> None:
        self.at, self.way, self.step, self.names = at, way, 0, []

    def fault(self, name: str) -> bool:
        self.names.append(name)
        self.step += 1
        if self.step - 1 != self.at:
            return False
        if self.way == "error":
            raise OSError(errno.ENOSPC, "No space left on device")
        return True

    def create(self, path):
        hit = self.fault("create")
        return self.after(hit, super().create(path))

    def write(self, descriptor, data):
        if self.fault("write"):  # writes half of it
            half = super().write(descriptor, data[: len(data) // 2])
            if self.way == "short write":
                return half
            self.after(True, None)
        return super().write(descriptor, data)

    def sync(self, descriptor):
        hit = self.fault("sync")
        return self.after(hit, super().sync(descriptor))

    def replace(self, source, target):
        hit = self.fault("replace")
        return self.after(hit, super().replace(source, target))

    def make_directory(self, path):
        hit = self.fault("make_directory")
        return self.after(hit, super().make_directory(path))

    def after(self, hit, value):
        if hit and self.way == "kill after":
            os._exit(9)
        if hit and self.way == "error after":
            raise OSError(errno.EIO, "Input/output error")
        return value


def count_steps(tmp_path: Path) -> list[str]:
    disk = FaultyDisk()
    write(tmp_path / "count", disk)
    return disk.names


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    path = tmp_path_factory.mktemp("expected") / "cache"
    write(path)
    return rows(path)


def check_resumed(out: Path, expected: tuple) -> None:
    write(out)
    assert rows(out) == expected  # opening checks all digests but those of tokens, which unpacking checks
    left = [path.name for path in out.rglob(".tmp-*")] + [path.name for path in out.glob("*.lock")]
    assert left == []


@pytest.mark.parametrize("way", ["error", "error after", "short write"])
def test_a_failure_at_any_step_is_resumed(tmp_path, expected, way):
    names = count_steps(tmp_path)
    assert {"create", "write", "sync", "replace", "make_directory"} == set(names)
    for at, name in enumerate(names):
        out = tmp_path / f"{way}-{at}"
        if way == "short write" and name == "write":
            write(out, FaultyDisk(at, way))  # the system may take fewer bytes than it was given, which is not an error
            assert rows(out) == expected
        elif way == "error" or (way == "error after" and name in ("write", "replace")):
            with pytest.raises(CacheError) as error:
                write(out, FaultyDisk(at, way))
            assert "run the same command again" in str(error.value)
            check_resumed(out, expected)


KILL = """
import sys
from knobctl.tests.test_cache_writer import FaultyDisk, write
from pathlib import Path
import os
for at in range(int(sys.argv[2])):  # each in a child process that dies at one step; forked to save the imports
    child = os.fork()
    if child == 0:
        write(Path(sys.argv[1]) / str(at), FaultyDisk(at, "kill after"))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9, at
"""


def test_a_kill_at_any_step_is_resumed(tmp_path, expected):
    steps = count_steps(tmp_path)
    subprocess.run([sys.executable, "-c", KILL, str(tmp_path), str(len(steps))], check=True, timeout=120)
    for at in range(len(steps)):
        check_resumed(tmp_path / str(at), expected)


def test_a_resumed_run_writes_only_missing_samples(tmp_path):
    out = tmp_path / "cache"
    with CacheWriter(out, RUN) as writer:
        assert not writer.resumed
        writer.write_part(
            sample_table(IDS[:1], 4),
            outcome_table(IDS[:1], TINY_SPACE),
            token_table(IDS[:1], TINY_SPACE, BUDGETS_MS, 4),
        )
    with pytest.raises(CacheError, match="half-written"):
        open_cache(out)
    assert write(out) == ["s2"]
    assert write(out) == []


def test_a_complete_cache_accepts_no_more_parts(tmp_path):
    write(tmp_path / "cache")
    with CacheWriter(tmp_path / "cache", RUN) as writer, pytest.raises(CacheError, match="already complete"):
        writer.write_part(sample_table(["s4"], 4), outcome_table(["s4"], TINY_SPACE), None)


def test_resuming_with_other_parameters_names_them(tmp_path):
    with CacheWriter(tmp_path / "cache", RUN):
        pass
    other = {"seed": 2, "model": {"fingerprint": "abd"}, "budgets_ms": [20.0, 41.0, 80.0], "runs": 5}
    with pytest.raises(CacheMismatch) as error, CacheWriter(tmp_path / "cache", other):
        pass
    message = str(error.value)
    for part in (
        "seed: 1 there, 2 now",
        'model.fingerprint: "abc" there, "abd" now',
        "budgets_ms[1]: 40.0",
        "runs: nothing",
    ):
        assert part in message
    assert message.count("budgets_ms") == 1


def test_a_directory_with_other_content_is_refused_and_unchanged(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(CacheError, match=r"contains something else: thesis\.tex"), CacheWriter(tmp_path, RUN):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(CacheError, match="not a directory"), CacheWriter(tmp_path / "thesis.tex", RUN):
        pass


def test_a_read_only_directory_is_named(tmp_path):
    class ReadOnly(Disk):  # simulates the refusal, because the superuser may write anywhere
        def make_directory(self, path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with pytest.raises(CacheError, match=r"cannot be written .*choose another directory"):
        write(tmp_path / "cache", ReadOnly())


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_directory_without_permission_is_named(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(CacheError, match="cannot be written"):
        write(tmp_path / "closed" / "cache")


def test_a_full_disk_keeps_committed_parts(tmp_path, expected):
    write(tmp_path / "whole")
    first_part = [file.stat().st_size for file in (tmp_path / "whole").rglob("*-000000.parquet")]

    class Small(QuickDisk):
        room = sum(first_part) + 2000

        def write(self, descriptor, data):
            if self.room < len(data):
                raise OSError(errno.ENOSPC, "No space left on device")
            self.room -= len(data)
            return super().write(descriptor, data)

    with pytest.raises(CacheError, match="disk is full"):
        write(tmp_path / "cache", Small())
    committed = len(list((tmp_path / "cache" / "samples").glob("part-*")))
    assert committed == 1
    assert write(tmp_path / "cache") == IDS[committed:]
    check_resumed(tmp_path / "cache", expected)


def test_a_part_changed_before_the_end_is_not_recorded(tmp_path):
    out = tmp_path / "cache"
    with CacheWriter(out, RUN) as writer:
        part = writer.write_part(sample_table(IDS, 4), outcome_table(IDS, TINY_SPACE), None)
        path = out / "outcomes" / part
        data = bytearray(path.read_bytes())
        data[40] ^= 1
        path.write_bytes(bytes(data))
        with pytest.raises(CacheError, match=f"outcomes/{part}"):
            writer.finish(tiny_manifest(d_model=4))
    assert not (out / "cache.json").exists()


def test_unknown_columns_raise_a_value_error(tmp_path):
    table = outcome_table(IDS, TINY_SPACE)
    with CacheWriter(tmp_path, RUN) as writer, pytest.raises(ValueError, match="latency_milis"):
        writer.write_part(sample_table(IDS, 4), table.append_column("latency_milis", table.column("latency_ms")), None)


def test_manifest_and_rows_are_reproduced(tmp_path):
    left, right = make_cache(tmp_path / "left"), make_cache(tmp_path / "right", samples_per_part=7)
    assert rows(left) == rows(right)
    one = make_cache(tmp_path / "one", samples=2)
    two = make_cache(tmp_path / "two", samples=2)
    for path in one.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (two / path.relative_to(one)).read_bytes()
