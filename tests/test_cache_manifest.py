"""`cache.json`: a manifest survives a round trip; invalid fields are refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from knobctl.data.cache.manifest import FileRecord, Manifest, manifest_changed
from knobctl.data.cache.reader import open_cache
from knobctl.data.errors import CacheError
from knobctl.data.files.bounded_json import parse_json, read_json
from knobctl.tests.support.caches import make_cache, tiny_manifest


def test_round_trip():
    manifest = tiny_manifest(
        files=(FileRecord("samples/part-0.parquet", 3, "0" * 64), FileRecord("run.json", None, "a" * 64)),
        datasets={"easy": {"train": 3, "metric": "exact_match"}},
        max_new_tokens={"easy": 4},
        extra={"execution": {"block_runs": 7}},
    )
    assert Manifest.from_dict(json.loads(json.dumps(manifest.to_dict()))) == manifest
    assert Manifest.from_dict(parse_json(manifest.to_bytes(), "bytes", CacheError)) == manifest


MINIMAL: dict[str, Any] = {
    "format": "knobctl-cache",
    "version": 1,
    "model": {"name": "m", "d_model": 4, "n_blocks": 6, "native_top_k": 2},
    "knobs": {"tiers": ["a"], "insertion_positions": [1], "top_k": [1, 2], "num_blocks": [5, 6]},
    "budgets_ms": [10, 20.5],
    "latency_mode": "blockwise",
}


def changed(**changes: Any) -> dict[str, Any]:
    """Returns MINIMAL with keys replaced; dicts are merged, `...` removes a key."""
    record = json.loads(json.dumps(MINIMAL))
    for name, value in changes.items():
        if value is ...:
            del record[name]
        elif isinstance(value, dict):
            record[name] = {k: v for k, v in {**record.get(name, {}), **value}.items() if v is not ...}
        else:
            record[name] = value
    return record


def test_optional_fields_may_be_missing():
    manifest = Manifest.from_dict(MINIMAL)
    assert manifest.budgets_ms == (10.0, 20.5)
    assert manifest.fingerprint is manifest.files is manifest.importance is None


REFUSED = [
    (changed(format=...), '"format" is missing'),
    (changed(format="other"), "not 'knobctl-cache'"),
    (changed(version=2), "newer"),
    (changed(version=0), "start at 1"),
    (changed(version="1"), "whole number"),
    (changed(model={"d_model": ...}), '"model.d_model" is missing'),
    (changed(model={"d_model": True}), "whole number"),
    (changed(model={"d_model": 0}), "d_model is 0"),
    (changed(model={"d_model": 10**12}), "d_model"),
    (changed(model={"n_blocks": 5}), "5 blocks"),
    (changed(model={"n_experts": 1}), "1 experts"),
    (changed(knobs={"tiers": ...}), "tiers"),
    (changed(knobs={"tiers": []}), "tiers"),
    (changed(knobs={"tiers": "low"}), '"knobs.tiers" must be a list'),
    (changed(knobs={"top_k": [1, 1]}), "no duplicates"),
    (changed(knobs={"top_k": [1.5]}), "top_k"),
    (changed(knobs={"insertion_positions": [0]}), "insertion_positions"),
    (changed(knobs={"insertion_positions": [1, 7]}), "6 blocks"),
    (changed(knobs={"insertion_positions": [6], "num_blocks": [5]}), "no setting can run"),
    (changed(knobs={"top_k": list(range(1, 3000)), "tiers": [str(i) for i in range(100)]}), "combinations"),
    (changed(knobs={"tier_crops": [[1]]}), "range of two"),
    (changed(knobs={"tier_crops": 3}), "tier_crops"),
    (changed(budgets_ms=[]), "empty"),
    (changed(budgets_ms=[0]), "positive"),
    (changed(budgets_ms=[-1.0]), "positive"),
    (changed(budgets_ms=[10, 10.0000001]), "distinct as float32"),
    (changed(budgets_ms=["10"]), '"budgets_ms[0]" must be a number'),
    (changed(budgets_ms=[10**400]), "too large"),
    (changed(budgets_ms=10), "must be a list"),
    (changed(latency_mode="guess"), "not one of"),
    (changed(latency_statistic="mode"), "not one of"),
    (changed(importance={"scores": [0.1] * 5}), "5 blocks"),
    (changed(importance={"scores": [0.1, None, 0.1, 0.1, 0.1, 0.1]}), "importance"),
    (changed(importance={"scores": ["x"] * 6}), "must be a number"),
    (changed(runs=0), "runs"),
    (changed(device="cpu"), "must be an object"),
    (changed(files=[{"path": "../other/part-0.parquet", "rows": 1, "sha256": "0" * 64}]), "outside the cache"),
    (changed(files=[{"path": "/etc/passwd", "rows": 1, "sha256": "0" * 64}]), "outside the cache"),
    (
        changed(files=[{"path": "samples/a", "rows": -1, "sha256": "0" * 64}]),
        '"files[0].rows" must be a whole number of at least 0, not -1',
    ),
    (changed(files=[{"path": "samples/a", "rows": 1, "sha256": "0" * 63}]), "64 hex digits"),
    (changed(files=[{"path": "a", "sha256": "0" * 64}, {"path": "./a", "sha256": "0" * 64}]), "twice"),
    (changed(files=["a"]), "must be an object"),
    (changed(datasets={"easy_vqa": 7}), '"datasets.easy_vqa" must be an object'),
    (changed(datasets={"easy_vqa": {"train": "many"}}), '"datasets.easy_vqa.train" must be a whole number'),
    (changed(datasets={"easy_vqa": {"style": 3}}), '"datasets.easy_vqa.style" must be a string'),
    ([], "must be an object"),
]


@pytest.mark.parametrize(("record", "named"), REFUSED, ids=[named for _, named in REFUSED])
def test_invalid_fields_are_refused_by_name(record, named):
    with pytest.raises(CacheError) as error:
        Manifest.from_dict(record, "where/cache.json")
    assert named in str(error.value)
    assert "cache.json" in str(error.value)


def test_importance_may_leave_out_the_first_and_the_last_block():
    manifest = Manifest.from_dict(changed(importance={"scores": [0.1, 0.2, 0.3, 0.4], "std": [0, 0, 0, 0]}))
    assert manifest.importance.scores == (None, 0.1, 0.2, 0.3, 0.4, None)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b'{"a": 1, "a": 2}', "'a' twice"),
        (b'{"a": {"b": NaN}}', "NaN"),
        (b'{"a": -Infinity}', "Infinity"),
        (b'{"a": 1e999}', "too large"),
        (b'{"a": ' + b"9" * 6000 + b"}", "not JSON"),
        (b'{"a": 1', "not JSON"),
        (b'{"a": "\xff"}', "not JSON"),
        (b"", "not JSON"),
        (b'{"a": ' * 40 + b"1" + b"}" * 40, "nested deeper"),
        (b"[" * 200_000 + b"]" * 200_000, "nested deeper"),
        (b" " * 3000, "larger than 2,000 bytes"),
    ],
)
def test_unbounded_or_invalid_json_is_refused(tmp_path, content, named):
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(CacheError) as error:
        read_json(path, CacheError, max_bytes=2000 if b"   " in content else 10**6)
    assert named in str(error.value)
    assert str(path) in str(error.value)


def test_a_missing_json_file_is_refused(tmp_path):
    with pytest.raises(CacheError, match="cannot be read"):
        read_json(tmp_path / "none.json", CacheError)


def test_the_manifests_own_digest_detects_any_changed_byte(tmp_path):
    path = tmp_path / "cache.json"
    whole = tiny_manifest().to_bytes()
    path.write_bytes(whole)
    assert not manifest_changed(path)
    unseen = []
    for place in range(len(whole)):
        data = bytearray(whole)
        data[place] ^= 1
        path.write_bytes(bytes(data))
        try:
            seen = manifest_changed(path)
        except CacheError:
            seen = True
        if not seen:
            unseen.append(place)
    # A bit flipped in the name of the digest's field makes it an unknown field of a manifest without a digest.
    name = whole.index(b"manifest_sha256")
    assert unseen == list(range(name, name + len("manifest_sha256")))


@pytest.mark.parametrize(("error", "warned"), [(0.05, False), (0.39, True), ("nonsense", False)])
def test_latencies_of_a_busy_machine_are_named(tmp_path: Path, error: object, warned: bool):
    path = make_cache(tmp_path / "cache")
    manifest = json.loads((path / "cache.json").read_text())
    manifest["latency_check"] = {"settings": 40, "stages": {"total": {"p95_absolute_error": error}}}
    (path / "cache.json").write_text(json.dumps(manifest))
    warnings = open_cache(path).warnings
    assert [("one in twenty is off by 39% or more" in text) for text in warnings] == [True] * warned
