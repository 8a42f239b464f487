"""Atomic writes: several threads may replace one file, and an error leaves the old content and no temporary file."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from knobctl.data.files.atomic import Disk, write_atomically


def test_threads_that_replace_one_file_leave_one_of_their_contents(tmp_path):
    path = tmp_path / "file"
    contents = [bytes([value]) * 100_000 for value in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda content: write_atomically(path, content), contents))
    assert path.read_bytes() in contents
    assert [child.name for child in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("step", ["write", "sync", "replace"])
def test_an_error_keeps_the_old_content(tmp_path, step):
    def fail(*_: object) -> None:
        raise OSError("no space")

    path = tmp_path / "file"
    path.write_bytes(b"old")
    disk = Disk()
    setattr(disk, step, fail)
    with pytest.raises(OSError, match="no space"):
        write_atomically(path, b"new", disk)
    assert path.read_bytes() == b"old"
    assert [child.name for child in tmp_path.iterdir()] == ["file"]
