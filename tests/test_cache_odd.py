"""Unusual caches that conform to the format: very many parts, names with braces, no outcomes, large counts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from knobctl.data.cache.reader import open_cache
from knobctl.data.errors import CacheError
from knobctl.data.knobs import KnobSpace
from knobctl.tests.support.caches import foreign_cache, make_cache


def test_there_may_be_more_parts_than_open_files_allowed(tmp_path):
    resource = pytest.importorskip("resource")
    path = make_cache(tmp_path / "cache", samples=60, samples_per_part=1, tokens=False)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    open_now = len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + 30, limits[1]))
    try:
        assert len(open_cache(path).sample_ids) == 60
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_braces_in_names_are_shown_unchanged(tmp_path):
    space = KnobSpace(("{x}", "high"), (1, 2), (2, 4), (3, 4), ((1, 3), (9, 15)))
    path = make_cache(tmp_path / "cache", space=space)
    part = next((path / "outcomes").iterdir())
    table = pq.read_table(part)
    tier = ["odd", *table.column("tier").to_pylist()[1:]]
    pq.write_table(table.set_column(table.schema.get_field_index("tier"), "tier", pa.array(tier)), part)
    record = json.loads((path / "cache.json").read_text())
    del record["files"]
    (path / "cache.json").write_text(json.dumps(record))
    with pytest.raises(CacheError, match=r"tier 'odd' is not one of .*\{x\}"):
        open_cache(path)


def test_optional_columns_without_rows_and_with_large_counts(tmp_path):
    path = foreign_cache(tmp_path / "cache")
    part = next((path / "outcomes").iterdir())
    table = pq.read_table(part)
    name = "output_tokens"
    counts = pa.array([(1 << 24) + 1] * len(table), pa.int32())
    pq.write_table(table.append_column(name, counts), part)
    assert open_cache(path).outcome_column(name).max() == 1 << 24
    for other in (path / "outcomes").iterdir():
        pq.write_table(pq.read_table(other).slice(0, 0), other)
    assert np.isnan(open_cache(path).outcome_column(name)).all()
