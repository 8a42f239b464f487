"""Caches that conform to the format are read, whichever program wrote them; others are refused with file and row."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from knobctl.data.cache.reader import open_cache
from knobctl.data.errors import CacheError, UnknownSetting
from knobctl.data.knobs import KnobSetting, KnobSpace
from knobctl.data.schema import outcomes_schema
from knobctl.tests.support.caches import (
    BUDGETS_MS,
    IDS,
    TINY_SPACE,
    cast,
    foreign_cache,
    make_cache,
    outcome_table,
    put,
    put_row,
    sample_table,
    token_table,
)


def contents(path: Path) -> tuple:
    cache = open_cache(path)
    assert cache.tokens is not None
    return (
        cache.sample_ids,
        cache.samples.select("sample_id", "dataset", "split").rows(),
        cache.language_feature_SD.tobytes(),
        cache.accuracy_SX.tobytes(),
        cache.latency_ms_SX.tobytes(),
        np.asarray(cache.tokens.token_STPMD).tobytes(),
    )


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return contents(foreign_cache(tmp_path_factory.mktemp("plain") / "cache"))


def test_values_are_in_the_cells_of_their_keys(tmp_path):
    cache = open_cache(foreign_cache(tmp_path / "cache"))
    outcomes = outcome_table(IDS, TINY_SPACE).to_pylist()
    assert len(outcomes) == cache.present_SX.sum() == cache.present_SX.size
    for row in outcomes:
        setting = KnobSetting(row["tier"], row["insertion_position"], row["top_k"], row["num_blocks"])
        cell = cache.sample_index[row["sample_id"]], TINY_SPACE.index(setting)
        assert cache.accuracy_SX[cell] == row["accuracy"]
        assert cache.latency_ms_SX[cell] == np.float32(row["latency_ms"])
    for row in token_table(IDS, TINY_SPACE, BUDGETS_MS, 4).to_pylist():
        place = (
            cache.sample_index[row["sample_id"]],
            TINY_SPACE.tiers.index(row["tier"]),
            TINY_SPACE.insertion_positions.index(row["insertion_position"]),
            cache.budget_index(row["budget_ms"]),
        )
        assert cache.tokens.token_STPMD[place].tolist() == row["token"]
    for row in sample_table(IDS, 4).to_pylist():
        index = cache.sample_index[row["sample_id"]]
        assert cache.language_feature_SD[index].tolist() == row["language_feature"]
        assert index in cache.indices(row["split"])
    assert cache.sample_ids == tuple(sorted(IDS))


LARGE = pa.large_string()
TWO_WAYS = pa.dictionary(pa.int8(), pa.large_string())
FORMS = {
    "large strings": {"samples": cast("sample_id", LARGE), "outcomes": cast("tier", LARGE)},
    "string views": {"samples": cast("dataset", pa.string_view()), "outcomes": cast("sample_id", pa.string_view())},
    "dictionary strings": {"samples": cast("split", TWO_WAYS), "outcomes": cast("sample_id", TWO_WAYS)},
    "dictionary tiers": {"latency_tokens": cast("tier", pa.dictionary(pa.int32(), pa.string()))},
    "int64 knobs": {"outcomes": cast("top_k", pa.int64()), "latency_tokens": cast("insertion_position", pa.int64())},
    "unsigned knobs": {"outcomes": cast("num_blocks", pa.uint64())},
    "whole floats as knobs": {"outcomes": cast("insertion_position", pa.float64())},
    "decimals": {
        "outcomes": cast("accuracy", pa.decimal128(4, 1)),
        "latency_tokens": cast("budget_ms", pa.decimal128(6, 2)),
    },
    "integer accuracy": {"outcomes": cast("accuracy", pa.int64())},
    "float64 numbers": {
        "outcomes": cast("latency_ms", pa.float64()),
        "latency_tokens": cast("budget_ms", pa.float64()),
    },
    "integer budgets": {"latency_tokens": cast("budget_ms", pa.int32())},
    "features as lists": {"samples": cast("language_feature", pa.list_(pa.float32()))},
    "features as large lists of float64": {"samples": cast("language_feature", pa.large_list(pa.float64()))},
    "tokens as lists of float32": {"latency_tokens": cast("token", pa.list_(pa.float32()))},
    "tokens as fixed lists of float64": {"latency_tokens": cast("token", pa.list_(pa.float64(), 4))},
    "rows reversed": dict.fromkeys(
        ("samples", "outcomes", "latency_tokens"), lambda table: table.take(list(range(table.num_rows))[::-1])
    ),
    "rows shuffled": dict.fromkeys(
        ("outcomes", "latency_tokens"),
        lambda table: table.take(np.random.default_rng(0).permutation(table.num_rows)),
    ),
    "columns in another order": {"outcomes": lambda table: table.select(table.column_names[::-1])},
    "unknown columns": {"outcomes": lambda table: table.append_column("note", pa.array([{"x": 1}] * table.num_rows))},
    "many parts": {"rows_per_part": 3},
    "small row groups": {"row_group_size": 2},
    "no compression, no dictionary": {"compression": "none", "use_dictionary": False},
    "no Arrow schema": {"store_schema": False},
    "budgets in any order": {"manifest": lambda record: record.update(budgets_ms=[80, 20.0, 40])},
    "unknown manifest keys": {"manifest": lambda record: record.update(weather={"sun": [1]})},
}


@pytest.mark.parametrize("form", FORMS)
def test_equivalent_column_types_read_the_same(tmp_path, expected, form):
    assert contents(foreign_cache(tmp_path / "cache", **FORMS[form])) == expected


def test_budgets_compare_as_float32(tmp_path):
    path = foreign_cache(tmp_path / "cache", budgets_ms=(123.4, 240.1))
    assert json.loads((path / "cache.json").read_text())["budgets_ms"] == [123.4, 240.1]
    cache = open_cache(path)
    assert cache.tokens.present_STPM.all()
    assert cache.budget_index(123.4) == cache.budget_index(float(np.float32(123.4))) == 0


def test_a_manifest_without_files_gives_one_warning(tmp_path):
    assert len(open_cache(foreign_cache(tmp_path / "cache")).warnings) == 1
    assert open_cache(make_cache(tmp_path / "ours")).warnings == []


def test_missing_outcomes_are_nan_and_masked(tmp_path):
    path = foreign_cache(
        tmp_path / "cache",
        outcomes=lambda table: put_row("accuracy", 20, None)(put_row("latency_ms", 21, None)(table)).slice(16),
        latency_tokens=lambda table: put_row("token", 2, None)(table.slice(1)),
    )
    cache = open_cache(path)
    assert np.isnan(cache.accuracy_SX[0]).all()
    assert not cache.present_SX[0].any()
    assert np.flatnonzero(~cache.present_SX[1]).tolist() == [4]
    assert np.flatnonzero(np.isnan(cache.latency_ms_SX[1])).tolist() == [5]
    assert "1 of 5 samples have no outcomes" in cache.warnings[-1]
    absent = np.argwhere(~cache.tokens.present_STPM).tolist()
    assert absent == [[0, 0, 0, 0], [0, 0, 1, 0]]  # the row that was removed; the one whose token is null
    assert np.isnan(cache.tokens.token_STPMD[0, 0, 0, 0]).all()
    assert np.isnan(cache.tokens.token_STPMD).any(axis=-1).sum() == 2


def test_imported_caches_have_no_insertion_position(tmp_path):
    space = KnobSpace(("low",), (None,), (2, 4), (3, 4))
    for number, kind in enumerate((pa.int8(), pa.null(), pa.float64())):
        path = foreign_cache(
            tmp_path / str(number),
            space=space,
            outcomes=lambda table, kind=kind: put("insertion_position", pa.nulls(table.num_rows, kind))(table),
            manifest=lambda record: record.update(latency_mode="imported"),
        )
        cache = open_cache(path)
        assert cache.present_SX.all()
        assert cache.space.settings[0].insertion_position is None


@pytest.mark.parametrize(
    ("space", "budgets_ms", "count", "d_model"),
    [
        (KnobSpace(tuple("abcdefg"), (1, 3, 7), tuple(range(1, 17)), (5, 9)), (10.0, 20.0), 3, 3),
        (KnobSpace(("low",), (1,), (4,), (12,)), (33.3,), 10, 1),
        (KnobSpace(("low", "high"), (1, 5), (4,), (3, 8)), (5.0,), 2, 7),  # n = 3 cannot run with p = 5
    ],
)
def test_other_knob_values_and_widths(tmp_path, space, budgets_ms, count, d_model):
    ids = [f"s{index}" for index in range(count)]
    cache = open_cache(foreign_cache(tmp_path / "c", space=space, budgets_ms=budgets_ms, ids=ids, d_model=d_model))
    assert cache.accuracy_SX.shape == (count, len(space.settings))
    assert cache.present_SX.all()
    assert cache.tokens.token_STPMD.shape == (
        count,
        len(space.tiers),
        len(space.insertion_positions),
        len(budgets_ms),
        d_model,
    )
    assert cache.tokens.present_STPM.all()


def test_a_split_may_be_empty(tmp_path):
    cache = open_cache(foreign_cache(tmp_path / "c", samples=put("split", ["train"] * 5)))
    assert len(cache.indices("train")) == 5
    assert len(cache.indices("test")) == 0


def test_a_cache_without_tokens_opens(tmp_path):
    path = foreign_cache(tmp_path / "cache")
    (path / "latency_tokens" / "part-0.parquet").unlink()
    (path / "latency_tokens").rmdir()
    assert open_cache(path).tokens is None


def shortened(table: pa.Table) -> pa.Table:
    return put("token", [row[:-1] for row in table.column("token").to_pylist()], pa.list_(pa.float16()))(table)


def ragged(table: pa.Table) -> pa.Table:
    rows = table.column("language_feature").to_pylist()
    rows[3] = rows[3][:2]
    return put("language_feature", rows, pa.list_(pa.float32()))(table)


REFUSED = {  # what is wrong: (edits, what the message must name)
    "column missing": ({"outcomes": lambda t: t.drop_columns("top_k")}, ["outcomes/part-0", "'top_k'", "missing"]),
    "feature missing": (
        {"samples": lambda t: t.drop_columns("language_feature")},
        ["samples/part-0", "'language_feature'"],
    ),
    "column twice": ({"outcomes": lambda t: t.append_column("tier", t.column("tier"))}, ["'tier'", "2 times"]),
    "wrong type": ({"outcomes": put("accuracy", lambda c: ["yes"] * len(c), pa.string())}, ["'accuracy'", "string"]),
    "wrong type of an optional column": (
        {"outcomes": lambda t: t.append_column("output_tokens", pa.array(["2"] * t.num_rows))},
        ["'output_tokens'", "string"],
    ),
    "number as name": ({"samples": put("sample_id", range(5), pa.int64())}, ["'sample_id'", "not a string"]),
    "null id": ({"samples": put_row("sample_id", 2, None)}, ["samples/part-0", "row 2", "'sample_id'", "null"]),
    "null tier": ({"outcomes": put_row("tier", 2, None)}, ["row 2", "'tier'", "null"]),
    "null position": ({"outcomes": put_row("insertion_position", 7, None)}, ["row 7", "'insertion_position'"]),
    "sample twice": ({"samples": put_row("sample_id", 4, "a/1")}, ["row 4", "'a/1'", "row 0"]),
    "outcome twice": (
        {"outcomes": lambda t: pa.concat_tables([t.slice(1), t.slice(5, 1)])},
        ["row 79", "'a/1'", "row 4"],
    ),
    "token twice": ({"latency_tokens": lambda t: pa.concat_tables([t.slice(1), t.slice(5, 1)])}, ["row 59", "row 4"]),
    "more rows than cells": ({"outcomes": lambda t: pa.concat_tables([t, t])}, ["outcomes/part-0", "160 rows"]),
    "unknown split": ({"samples": put_row("split", 1, "dev")}, ["row 1", "'split'", "'dev'"]),
    "unknown sample": ({"outcomes": put_row("sample_id", 9, "c/1")}, ["row 9", "'sample_id'", "'c/1'"]),
    "unknown tier": ({"outcomes": put_row("tier", 9, "medium")}, ["row 9", "'tier'", "'medium'"]),
    "unknown position": ({"outcomes": put_row("insertion_position", 9, 5)}, ["row 9", "'insertion_position'", "5"]),
    "unknown k": ({"outcomes": put_row("top_k", 9, 3)}, ["row 9", "'top_k'", "3"]),
    "unknown n": ({"outcomes": put_row("num_blocks", 9, 16)}, ["row 9", "'num_blocks'", "16"]),
    "k and a half": ({"outcomes": put("top_k", lambda c: [2.5] * len(c), pa.float64())}, ["row 0", "'top_k'", "2.5"]),
    "unknown budget": ({"latency_tokens": put_row("budget_ms", 9, 41.0)}, ["row 9", "'budget_ms'", "41", "20, 40, 80"]),
    "token of no sample": ({"latency_tokens": put_row("sample_id", 9, "c/1")}, ["latency_tokens", "row 9", "'c/1'"]),
    "accuracy above 1": ({"outcomes": put_row("accuracy", 9, 1.25)}, ["row 9", "'accuracy'", "1.25"]),
    "negative accuracy": ({"outcomes": put_row("accuracy", 9, -0.5)}, ["row 9", "'accuracy'", "-0.5"]),
    "accuracy NaN": ({"outcomes": put_row("accuracy", 9, float("nan"))}, ["row 9", "'accuracy'", "nan"]),
    "infinite latency": ({"outcomes": put_row("latency_ms", 9, float("inf"))}, ["row 9", "'latency_ms'", "inf"]),
    "zero latency": ({"outcomes": put_row("latency_ms", 9, 0.0)}, ["row 9", "'latency_ms'", "positive"]),
    "negative latency": ({"outcomes": put_row("latency_ms", 9, -3.0)}, ["row 9", "'latency_ms'", "-3"]),
    "feature of another width": ({"samples": ragged}, ["row 3", "'language_feature'", "2 numbers"]),
    "feature NaN": ({"samples": put_row("language_feature", 1, [0.0, 1.0, float("nan"), 2.0])}, ["row 1", "NaN"]),
    "feature null": ({"samples": put_row("language_feature", 1, None)}, ["row 1", "'language_feature'", "null"]),
    "no sample": ({"samples": lambda t: t.slice(0, 0)}, ["samples", "no sample"]),
    "fixed token width": (
        {"latency_tokens": put("token", lambda c: [[0.0] * 3] * len(c), pa.list_(pa.float16(), 3))},
        ["latency_tokens/part-0", "'token'", "3", "4"],
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_rows_that_violate_the_format_are_refused_with_file_row_and_column(tmp_path, what):
    edits, named = REFUSED[what]
    with pytest.raises(CacheError) as error:
        open_cache(foreign_cache(tmp_path / "cache", **edits))
    assert [text for text in named if text not in str(error.value)] == [], str(error.value)


REFUSED_TOKENS = {
    "too short": (shortened, ["row 0", "3 numbers"]),
    "NaN": (put_row("token", 17, [0.0, 1.0, float("nan"), 2.0]), ["row 17", "NaN"]),
    "infinity": (put_row("token", 59, [0.0, 1.0, float("-inf"), 2.0]), ["row 59", "infinity"]),
    "a null inside": (put_row("token", 8, [0.0, None, 1.0, 2.0]), ["row 8", "null"]),
    "beyond float16": (
        put("token", lambda c: [[7e4, 0, 0, 0]] * len(c), pa.list_(pa.float32())),
        ["row 0", "float16"],
    ),
}


@pytest.mark.parametrize("what", REFUSED_TOKENS)
def test_token_numbers_are_checked_when_they_are_unpacked(tmp_path, what):
    edit, named = REFUSED_TOKENS[what]
    cache = open_cache(foreign_cache(tmp_path / "cache", latency_tokens=edit))
    with pytest.raises(CacheError) as error:
        _ = cache.tokens.token_STPMD
    assert [text for text in ["latency_tokens/part-0", "'token'", *named] if text not in str(error.value)] == []


def test_a_duplicate_row_in_two_parts_names_both(tmp_path):
    path = foreign_cache(tmp_path / "cache")
    (path / "outcomes" / "part-9.parquet").write_bytes((path / "outcomes" / "part-0.parquet").read_bytes())
    with pytest.raises(CacheError, match=r"part-9\.parquet: row 0 .*row 0 of .*part-0\.parquet"):
        open_cache(path)


@pytest.mark.parametrize("table", ["samples", "outcomes"])
def test_a_missing_table_is_named(tmp_path, table):
    path = foreign_cache(tmp_path / "cache")
    (path / table / "part-0.parquet").unlink()
    with pytest.raises(CacheError, match=f"lacks its table `{table}`"):
        open_cache(path)


@pytest.mark.parametrize("keep", [0, 3, 100, -9, -1])
def test_a_truncated_part_is_named(tmp_path, keep):
    path = foreign_cache(tmp_path / "cache")
    part = path / "outcomes" / "part-0.parquet"
    part.write_bytes(part.read_bytes()[:keep])
    with pytest.raises(CacheError, match=r"outcomes/part-0\.parquet is damaged"):
        open_cache(path)


def test_page_checksums_are_checked_as_pages_are_read(tmp_path):
    path = foreign_cache(tmp_path / "cache", write_page_checksum=True, compression="none", use_dictionary=False)
    part = path / "outcomes" / "part-0.parquet"
    data = bytearray(part.read_bytes())
    place = data.index(b"\4\0\0\0high") + 4  # in a data page; the file stays valid Parquet, with another valid string
    data[place : place + 4] = b"low!"
    part.write_bytes(bytes(data))
    with pytest.raises(CacheError, match=r"outcomes/part-0\.parquet is damaged"):
        open_cache(path)


def test_links_out_of_the_cache_are_refused(tmp_path):
    path = foreign_cache(tmp_path / "cache")
    part = path / "samples" / "part-0.parquet"
    part.rename(tmp_path / "elsewhere.parquet")
    part.symlink_to(tmp_path / "elsewhere.parquet")
    with pytest.raises(CacheError, match="leads out of the cache"):
        open_cache(path)


def test_a_budget_outside_the_grid_lists_it(tmp_path):
    with pytest.raises(UnknownSetting, match="20, 40, 80"):
        open_cache(foreign_cache(tmp_path / "cache")).budget_index(41)


def test_optional_columns(tmp_path):
    cache = open_cache(make_cache(tmp_path / "cache"))
    rows = {
        (r["sample_id"], r["tier"], r["insertion_position"], r["top_k"], r["num_blocks"]): r
        for r in outcome_table(list(cache.sample_ids), TINY_SPACE).to_pylist()
    }
    answer, runs, tokens = (cache.outcome_column(n) for n in ("answer", "latency_runs_ms", "output_tokens"))
    for s, sample_id in enumerate(cache.sample_ids):
        for x, k in enumerate(TINY_SPACE.settings):
            row = rows[sample_id, k.tier, k.insertion_position, k.top_k, k.num_blocks]
            assert answer[s, x] == row["answer"]
            assert tokens[s, x] == row["output_tokens"]
            assert runs[s, x].tolist() == row["latency_runs_ms"] == cache.latency_runs_ms_SXR[s, x].tolist()
    assert cache.outcome_column("vision_ms") is None
    with pytest.raises(ValueError, match="not an optional column"):
        cache.outcome_column("vision_millis")


def test_optional_columns_in_some_parts_and_rows_only(tmp_path):
    def timed(table: pa.Table) -> pa.Table:
        table = table.append_column("vision_ms", pa.array([float(r) for r in range(table.num_rows)], pa.float64()))
        runs = [[1.0, 2.0], [], None, [3.0]] * (table.num_rows // 4)
        return table.append_column("latency_runs_ms", pa.array(runs, pa.large_list(pa.float64())))

    cache = open_cache(foreign_cache(tmp_path / "cache", outcomes=lambda table: timed(table).slice(16)))
    vision = cache.outcome_column("vision_ms")
    assert np.isnan(vision[0]).all()
    assert vision[1].tolist() == list(range(16, 32))
    runs = cache.outcome_column("latency_runs_ms")
    assert runs[0, 0] is None
    assert runs[1, 2] is None
    assert len(runs[1, 1]) == 0
    assert runs[1, 0].tolist() == [1.0, 2.0]
    assert cache.latency_runs_ms_SXR[1, 3].tolist() == pytest.approx([3.0, np.nan], nan_ok=True)
    assert np.isnan(cache.latency_runs_ms_SXR[1, 1:3]).all()
    bad = foreign_cache(
        tmp_path / "bad",
        outcomes=lambda t: timed(put_row("tier", 0, "low")(t)).set_column(
            7, "vision_ms", pa.array([-1.0] * t.num_rows)
        ),
    )
    with pytest.raises(CacheError, match=r"row 0 .*'vision_ms'.*negative"):
        open_cache(bad).outcome_column("vision_ms")


def test_the_fingerprint_covers_content_and_not_dates_or_timings(tmp_path):
    base = open_cache(foreign_cache(tmp_path / "a")).fingerprint
    shuffled = foreign_cache(tmp_path / "b", rows_per_part=7, outcomes=lambda t: t.take(list(range(t.num_rows))[::-1]))
    slower = foreign_cache(tmp_path / "c", outcomes=put_row("latency_ms", 3, 99.0))
    wrong = foreign_cache(tmp_path / "d", outcomes=put_row("accuracy", 3, 0.5))
    assert open_cache(shuffled).fingerprint == base == open_cache(slower).fingerprint
    assert open_cache(wrong).fingerprint != base


def test_the_schema_equals_the_format_page():
    assert outcomes_schema()[0].names == foreign_names()


def foreign_names() -> list[str]:
    """The required columns of `outcomes`."""
    return ["sample_id", "tier", "insertion_position", "top_k", "num_blocks", "accuracy", "latency_ms"]
