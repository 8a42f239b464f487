"""Kills at random moments: a few here, hundreds in `make soak`."""

from __future__ import annotations

import pytest

from knobctl.benchmarks.soak import OWN_WRITER, cache_problems, soak
from knobctl.data.cache.verify import verify_parts
from knobctl.tests.support.caches import make_cache


def test_kills_at_random_moments_lose_no_committed_part(tmp_path):
    report = soak(OWN_WRITER, tmp_path, kills=3, seed=1)
    assert report.problems == []
    assert report.kills == 3
    assert report.finished >= 1


def test_the_soak_detects_a_damaged_part(tmp_path):
    def torn(out):
        parts = sorted(out.glob("outcomes/part-*"))
        if parts:
            parts[0].write_bytes(parts[0].read_bytes()[:-1])  # as a writer without rename and sync might leave it
        return cache_problems(out)

    report = soak(OWN_WRITER, tmp_path, kills=50, check=torn)
    assert any("outcomes/part-0000-000000.parquet" in problem for problem in report.problems)
    assert (tmp_path / "killed").exists()


@pytest.mark.parametrize("table", ["outcomes", "latency_tokens"])
def test_a_damaged_part_is_detected_in_an_incomplete_cache(tmp_path, table):
    path = make_cache(tmp_path / "cache")
    (path / "cache.json").unlink()
    assert verify_parts(path) == []
    part = sorted((path / table).iterdir())[1]
    part.write_bytes(part.read_bytes()[:-1])
    assert [problem.path for problem in verify_parts(path)] == [part]
