"""Tokens are unpacked once and found again; a store that was made from other parts is never used."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest

from knobctl.data.cache import unpacked_tokens
from knobctl.data.cache.reader import open_cache
from knobctl.data.errors import CacheError
from knobctl.tests.support.caches import make_cache


def stores(root):
    return sorted(path.parent for path in root.glob("*/store.json"))


def test_opening_a_cache_unpacks_nothing(tmp_path):
    cache = open_cache(make_cache(tmp_path / "cache"))
    assert cache.tokens.present_STPM.all()
    assert not (tmp_path / "cache" / "derived").exists()


def test_the_second_opening_reads_no_token_part(tmp_path, monkeypatch):
    path = make_cache(tmp_path / "cache")
    first = np.array(open_cache(path).tokens.token_STPMD)
    (store,) = stores(path / "derived")
    stamp = (store / "token.float16").stat().st_mtime_ns

    def read(*_args, **_kwargs):
        raise AssertionError("read a token part")

    monkeypatch.setattr("knobctl.data.cache.token_store._read_rows", read)
    again = open_cache(path).tokens
    assert isinstance(again.token_STPMD, np.memmap)
    assert not again.token_STPMD.flags.writeable
    assert again.present_STPM.all()
    np.testing.assert_array_equal(again.token_STPMD, first)
    assert (store / "token.float16").stat().st_mtime_ns == stamp


def test_a_removed_store_is_made_again(tmp_path):
    path = make_cache(tmp_path / "cache")
    open_cache(path).tokens.unpack()
    for file in stores(path / "derived")[0].iterdir():
        file.unlink()
    assert open_cache(path).tokens.unpack().is_dir()


def test_an_incomplete_store_is_not_used(tmp_path):
    path = make_cache(tmp_path / "cache")
    token = np.array(open_cache(path).tokens.token_STPMD)
    file = stores(path / "derived")[0] / "token.float16"
    file.write_bytes(file.read_bytes()[:-2])
    np.testing.assert_array_equal(open_cache(path).tokens.token_STPMD, token)


def test_other_parts_get_another_store(tmp_path):
    one, two = make_cache(tmp_path / "one"), make_cache(tmp_path / "two", seed=1)
    root = tmp_path / "shared"
    left = open_cache(one, derived=root).tokens
    right = open_cache(two, derived=root).tokens
    assert (np.asarray(left.token_STPMD) != np.asarray(right.token_STPMD)).any()
    assert len(stores(root)) == 2


def test_a_changed_token_part_is_refused_with_and_without_a_store(tmp_path):
    path = make_cache(tmp_path / "cache")
    part = sorted((path / "latency_tokens").iterdir())[1]
    table = pq.read_table(part)
    tokens = open_cache(path).tokens
    pq.write_table(table.take(list(range(table.num_rows))[::-1]), part)  # valid, with the same rows
    with pytest.raises(CacheError, match=part.name):
        tokens.unpack()
    open_cache(make_cache(tmp_path / "other")).tokens.unpack()
    part = sorted((tmp_path / "other" / "latency_tokens").iterdir())[1]
    pq.write_table(table.take(list(range(table.num_rows))[::-1]), part)
    with pytest.raises(CacheError, match=part.name):
        open_cache(tmp_path / "other")


def test_a_copied_cache_keeps_its_store(tmp_path):
    path = make_cache(tmp_path / "cache")
    store = open_cache(path).tokens.unpack()
    for part in (path / "latency_tokens").iterdir():
        os.utime(part, (1, 1))  # as after a copy
    assert open_cache(path).tokens.unpack() == store
    stamps = [open_cache(path).tokens.unpack().joinpath(n).stat().st_mtime_ns for n in ("token.float16", "store.json")]
    assert stamps[1] >= stamps[0]


def test_a_read_only_cache_is_unpacked_elsewhere(tmp_path, monkeypatch):
    path = make_cache(tmp_path / "cache")
    (path / "derived").touch()  # a file: even the superuser cannot create anything below it
    monkeypatch.setattr(unpacked_tokens, "_NOT_WRITABLE", (*unpacked_tokens._NOT_WRITABLE, errno.EEXIST, errno.ENOTDIR))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    store = open_cache(path).tokens.unpack()
    assert store.is_relative_to(tmp_path / "home" / "knobctl" / "tokens")
    monkeypatch.setenv("KNOBCTL_DERIVED_DIR", str(tmp_path / "chosen"))
    assert open_cache(path).tokens.unpack().is_relative_to(tmp_path / "chosen")


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(tmp_path, monkeypatch):
    path = make_cache(tmp_path / "cache")

    def full(*_args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.posix_fallocate", full)
        with pytest.raises(CacheError, match=r"no room .*KNOBCTL_DERIVED_DIR"):
            open_cache(path).tokens.unpack()
    assert [file for file in (path / "derived").iterdir() if not file.name.startswith(".lock")] == []
    assert open_cache(path).tokens.unpack().is_dir()


KILLED = """
import os, sys
from pathlib import Path
from knobctl.data.cache import unpacked_tokens
from knobctl.data.cache.reader import open_cache
unpacked_tokens._stats = lambda parts: os._exit(9)
open_cache(Path(sys.argv[1])).tokens.unpack()
"""


def test_leftovers_of_a_killed_unpacking_are_removed(tmp_path):
    path = make_cache(tmp_path / "cache")
    assert subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False, timeout=60).returncode == 9
    assert [file.name[:5] for file in (path / "derived").iterdir() if file.is_dir()] == [".tmp-"]
    store = open_cache(path).tokens.unpack()
    assert [file for file in (path / "derived").iterdir() if file.is_dir()] == [store]


def test_rows_may_come_in_any_order(tmp_path):
    path = make_cache(tmp_path / "cache")
    expected = np.array(open_cache(path).tokens.token_STPMD)
    cells, tokens = zip(*open_cache(path, derived=tmp_path / "none").tokens.batches(), strict=True)
    order = np.random.default_rng(0).permutation(sum(len(cell) for cell in cells))
    shuffled = [(np.concatenate(cells)[order], np.concatenate(tokens)[order])]
    shape = expected.shape
    mapped = unpacked_tokens.build_store(path, "k" * 32, shape, tmp_path / "elsewhere", [], shuffled)
    np.testing.assert_array_equal(mapped.token_STPMD, expected)


def test_unpacking_removes_nothing_outside_the_cache(tmp_path):
    path = make_cache(tmp_path / "cache")
    kept = tmp_path / "elsewhere" / "thesis" / "store.json"
    kept.parent.mkdir(parents=True)
    kept.write_text("{}")
    (path / "derived").symlink_to(tmp_path / "elsewhere")
    open_cache(path).tokens.unpack()
    assert kept.exists()


def test_only_stores_are_removed_inside_the_cache(tmp_path):
    path = make_cache(tmp_path / "cache")
    mine, old = path / "derived" / "mine" / "store.json", path / "derived" / ("0" * 32) / "store.json"
    for file in (mine, old):
        file.parent.mkdir(parents=True)
        file.write_text("{}")
    open_cache(path).tokens.unpack()
    assert mine.exists()
    assert not old.exists()
