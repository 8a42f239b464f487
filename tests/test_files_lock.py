"""Directory locks: a second writer is refused with the holder's name, a dead holder's is taken over. File locks."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import asdict, replace

import pytest

from knobctl.data.cache.writer import CacheWriter
from knobctl.data.errors import CacheError, KnobctlError
from knobctl.data.files.lock import LOCK_NAME, DirectoryLock, FileLock, Holder

HOLD = """
import sys, time
from pathlib import Path
from knobctl.data.cache.writer import CacheWriter
with CacheWriter(Path(sys.argv[1]), {"run": 1}):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_with_host_and_pid_until_the_first_dies(tmp_path):
    out = tmp_path / "cache"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(out)], stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout.readline() == b"held\n"
            with pytest.raises(CacheError) as error, CacheWriter(out, {"run": 1}):
                pass
            assert f"process {holder.pid} on host {socket.gethostname()}" in str(error.value)
        finally:
            holder.kill()
    with CacheWriter(out, {"run": 1}) as writer:  # nothing to clean up after a kill
        assert writer.resumed


def test_a_second_writer_in_the_same_process_is_refused(tmp_path):
    with (
        CacheWriter(tmp_path, {}),
        pytest.raises(CacheError, match=f"process {os.getpid()} on host"),
        CacheWriter(tmp_path, {}),
    ):
        pass


def put_lock(directory, holder):
    (directory / LOCK_NAME).write_text(json.dumps(asdict(holder)))


def test_a_lock_of_another_host_is_refused_with_what_to_do(tmp_path):
    put_lock(tmp_path, replace(Holder.this(), host="elsewhere", pid=4711))
    with pytest.raises(KnobctlError) as error, DirectoryLock(tmp_path):
        pass
    for text in ("process 4711 on host elsewhere", f"remove {tmp_path / LOCK_NAME}"):
        assert text in str(error.value)


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path):
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    put_lock(tmp_path, Holder(socket.gethostname(), int(dead.stdout), time.time()))
    with DirectoryLock(tmp_path):
        assert json.loads((tmp_path / LOCK_NAME).read_text())["pid"] == os.getpid()
    assert not (tmp_path / LOCK_NAME).exists()


def test_a_later_process_with_the_same_pid_is_not_the_holder(tmp_path):
    this = Holder.this()
    put_lock(tmp_path, replace(this, pid=os.getppid(), started=this.started - 1000))
    with DirectoryLock(tmp_path):
        pass
    put_lock(tmp_path, Holder(this.host, os.getppid(), None))  # no start time to tell it by: counts as alive
    with pytest.raises(KnobctlError, match=f"process {os.getppid()}"), DirectoryLock(tmp_path):
        pass


@pytest.mark.parametrize("content", ["", "{", "[]", '{"host": 1}', '{"host": "h", "pid": -1, "started": null}'])
def test_a_lock_file_without_a_valid_holder_is_taken_over(tmp_path, content):
    (tmp_path / LOCK_NAME).write_text(content)
    with DirectoryLock(tmp_path):
        pass


def test_an_error_inside_releases_the_lock(tmp_path):
    with pytest.raises(ZeroDivisionError), DirectoryLock(tmp_path):
        _ = 1 / 0
    with DirectoryLock(tmp_path):
        pass


def can_take(path, operation):
    """Whether another open file description can take the lock now; flock treats it like another process."""
    with path.open("r+") as file:
        try:
            fcntl.flock(file, operation | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def test_a_shared_file_lock_admits_other_holders_and_an_exclusive_one_none(tmp_path):
    path = tmp_path / "new" / "lock"
    lock = FileLock(path)
    with lock.shared():
        assert can_take(path, fcntl.LOCK_SH)
        assert not can_take(path, fcntl.LOCK_EX)
        with lock.exclusive():
            assert not can_take(path, fcntl.LOCK_SH)
        assert can_take(path, fcntl.LOCK_SH)
    assert can_take(path, fcntl.LOCK_EX)
    with lock.exclusive():
        assert not can_take(path, fcntl.LOCK_SH)
    assert can_take(path, fcntl.LOCK_EX)
