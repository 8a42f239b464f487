"""A finished command handles any stdout: another encoding, closed, without a reader, or on a full disk."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from knobctl.tests.support.caches import make_cache


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cache(tmp_path_factory.mktemp("größe") / "cache", samples=40)


def run(stdout: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = f'"$0" -m knobctl.cli "$@" {stdout}'
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command, sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_characters_that_the_encoding_lacks_are_escaped(cache: Path, tmp_path: Path, encoding: str):
    linked = tmp_path / "größe-日本"
    linked.symlink_to(cache)
    done = run(f"> {tmp_path}/out", "inspect", linked, PYTHONIOENCODING=f"{encoding}:strict")
    assert done.returncode == 0, done.stderr
    expected = str(linked).encode(encoding, "backslashreplace")
    printed = b"".join(line.strip() for line in (tmp_path / "out").read_bytes().splitlines())  # long paths are wrapped
    assert expected in printed


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [("inspect", "CACHE"), ("inspect", "CACHE", "--json"), ("--help",)])
def test_a_full_disk_gives_a_one_line_error(cache: Path, unbuffered: str, arguments: tuple[str, ...]):
    named = [str(cache) if word == "CACHE" else word for word in arguments]
    done = run("> /dev/full", *named, PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: the result cannot be written to stdout (No space left on device)")
    assert len(done.stderr.splitlines()) == 1


def test_a_closed_stdout_and_a_missing_reader_give_no_error(cache: Path):
    closed = run(">&-", "inspect", cache)
    assert (closed.returncode, closed.stderr) == (0, "")
    assert run("| true", "inspect", cache).stderr == ""
