"""One writer per directory: a second one is told who holds it, and a dead one's lock is taken over."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import asdict, replace

import pytest

from knobctl.data.cache import CacheWriter
from knobctl.data.errors import CacheError
from knobctl.data.files.lock import LOCK_NAME, DirectoryLock, Holder

HOLD = """
import sys, time
from pathlib import Path
from knobctl.data.cache import CacheWriter
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
    with CacheWriter(out, {"run": 1}) as writer:  # no cleaning up by hand after a kill
        assert writer.resumed


def test_two_writers_in_one_process_are_two_writers(tmp_path):
    with (
        CacheWriter(tmp_path, {}),
        pytest.raises(CacheError, match=f"process {os.getpid()} on host"),
        CacheWriter(tmp_path, {}),
    ):
        pass


def put_lock(directory, holder):
    (directory / LOCK_NAME).write_text(json.dumps(asdict(holder)))


def test_another_hosts_lock_is_respected_and_says_what_to_do(tmp_path):
    put_lock(tmp_path, replace(Holder.this(), host="elsewhere", pid=4711))
    with pytest.raises(CacheError) as error, DirectoryLock(tmp_path):
        pass
    for text in ("process 4711 on host elsewhere", f"remove {tmp_path / LOCK_NAME}"):
        assert text in str(error.value)


def test_a_dead_processs_lock_is_taken_over(tmp_path):
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    put_lock(tmp_path, Holder(socket.gethostname(), int(dead.stdout), time.time()))
    with DirectoryLock(tmp_path):
        assert json.loads((tmp_path / LOCK_NAME).read_text())["pid"] == os.getpid()
    assert not (tmp_path / LOCK_NAME).exists()


def test_a_pid_that_another_process_got_is_not_its_holder(tmp_path):
    this = Holder.this()
    put_lock(tmp_path, replace(this, pid=os.getppid(), started=this.started - 1000))
    with DirectoryLock(tmp_path):
        pass
    put_lock(tmp_path, Holder(this.host, os.getppid(), None))  # alive, as far as can be told
    with pytest.raises(CacheError, match=f"process {os.getppid()}"), DirectoryLock(tmp_path):
        pass


@pytest.mark.parametrize("content", ["", "{", "[]", '{"host": 1}', '{"host": "h", "pid": -1, "started": null}'])
def test_a_lock_cut_off_while_written_is_nobodys(tmp_path, content):
    (tmp_path / LOCK_NAME).write_text(content)
    with DirectoryLock(tmp_path):
        pass


def test_an_error_inside_frees_the_lock(tmp_path):
    with pytest.raises(ZeroDivisionError), DirectoryLock(tmp_path):
        _ = 1 / 0
    with DirectoryLock(tmp_path):
        pass
