"""The cache written by an import: its content, what it omits, and that it is reproducible."""

import json
import random
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from knobctl.data.cache.reader import open_cache
from knobctl.data.cache.verify import verify_cache
from knobctl.data.datasets.cache_split import cache_split
from knobctl.data.errors import CacheError, ResultsError
from knobctl.data.importer import import_results, recorded_outcomes
from knobctl.data.knobs import KnobSetting
from knobctl.tests.support.results_dirs import BLOCKS, as_file, make_questions, measure, write, write_messy_directory

EXAMPLE = Path(__file__).parent / "fixtures" / "import" / "core_exp"


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    out = tmp_path_factory.mktemp("example") / "cache"
    return import_results(EXAMPLE, out), open_cache(out)


def put(root, count=4, tier="low", top_k=8, num_blocks=16, dataset="text_vqa", rank=None, edit=None, **changes):
    rng = random.Random(1)
    rows = [
        {"sample_id": i, **measure(q, tier, top_k, num_blocks, rng)}
        for i, q in enumerate(make_questions(dataset, count))
    ]
    if edit is not None:
        edit(rows)
    return write(root, dataset, as_file(rows, tier, top_k, num_blocks, BLOCKS[num_blocks]) | changes, rank)


def test_the_manifest_describes_imported_results(example):
    _, cache = example
    manifest = cache.manifest
    assert manifest.latency_mode == "imported"
    assert (manifest.d_model, manifest.n_blocks, manifest.native_top_k, manifest.runs) == (0, 16, 8, 5)
    assert manifest.latency_statistic == "mean"
    assert manifest.space.tiers == ("low", "medium", "high")
    assert manifest.space.insertion_positions == (None,)
    assert (manifest.space.top_k, manifest.space.num_blocks) == ((4, 6, 8), (12, 14, 16))
    assert manifest.space.tier_crops == ((1, 3), (4, 8), (9, 15))
    assert cache.language_feature_SD.shape == (8, 0)
    assert cache.tokens is None
    assert cache.warnings == []
    assert verify_cache(cache.path) == []


def test_every_recorded_outcome_has_its_setting(example):
    _, cache = example
    recorded = recorded_outcomes(EXAMPLE).table
    seen = np.zeros_like(cache.accuracy_SX, dtype=bool)
    for row in recorded.to_dicts():
        x = cache.space.index(KnobSetting(row["tier"], None, row["top_k"], row["num_blocks"]))
        s = cache.sample_index[row["sample_id"]]
        assert cache.accuracy_SX[s, x] == pytest.approx(row["accuracy"])
        assert cache.latency_ms_SX[s, x] == pytest.approx(row["latency_ms"])
        assert cache.outcome_column("decode_ms")[s, x] == pytest.approx(row["decode_ms"])
        assert cache.outcome_column("answer")[s, x] == row["answer"]
        seen[s, x] = True
    assert np.array_equal(seen, cache.present_SX)
    assert np.isnan(cache.accuracy_SX[~seen]).all()
    assert np.isnan(cache.latency_ms_SX[~seen]).all()


def test_the_cache_contains_only_recorded_values(example):
    _, cache = example
    (part,) = sorted((cache.path / "outcomes").glob("*.parquet"))
    table = pq.read_table(part)
    assert table.column("insertion_position").null_count == table.num_rows
    assert set(table.column("outcome_source").to_pylist()) == {"imported"}
    assert not {"latency_runs_ms", "latency_std_ms"} & set(table.column_names)
    (part,) = sorted((cache.path / "samples").glob("*.parquet"))
    assert not {"language_feature", "text_tokens", "image_ref"} & set(pq.read_table(part).column_names)
    assert list((cache.path / "latency_tokens").glob("*.parquet")) == []


def test_block_sets_are_in_the_manifest(example):
    _, cache = example
    sets = {
        (r["tier"], r["num_blocks"]): r["active_block_indices"] for r in cache.manifest.extra["imported"]["block_sets"]
    }
    assert sets["low", 12] == BLOCKS[12]
    assert sets["high", 16] == list(range(16))


def test_budgets_range_from_the_lowest_median_to_the_highest_p95(example):
    _, cache = example
    table = recorded_outcomes(EXAMPLE).table
    medians = table.group_by("tier", "top_k", "num_blocks").agg(pl.col("latency_ms").median())["latency_ms"]
    assert len(cache.budgets_ms) == 16
    assert cache.budgets_ms[0] == np.rint(medians.min())
    assert medians.max() < cache.budgets_ms[-1] <= np.ceil(table["latency_ms"].max())


def test_splits_follow_the_image(tmp_path):
    put(tmp_path / "results", count=40)
    import_results(tmp_path / "results", tmp_path / "cache", seed=3)
    samples = open_cache(tmp_path / "cache").samples
    assert samples["split"].to_list() == [cache_split(image_id, 3) for image_id in samples["image_id"]]
    assert samples.group_by("image_id").agg(pl.col("split").n_unique())["split"].max() == 1
    assert samples["split"].n_unique() == 3


def test_without_images_the_split_is_by_question_with_a_warning(tmp_path):
    put(tmp_path / "results", dataset="okvqa")
    report = import_results(tmp_path / "results", tmp_path / "cache")
    samples = open_cache(tmp_path / "cache").samples
    assert samples["split"].to_list() == [cache_split(sample_id, 0) for sample_id in samples["sample_id"]]
    (finding,) = [f for f in report.findings if f.code == "no_image_id"]
    assert (finding.level, finding.rows) == ("warning", 4)


def test_the_report_is_written_to_the_cache(example):
    report, cache = example
    stored = json.loads((cache.path / "import_report.json").read_text())
    assert stored == json.loads(json.dumps(report.to_dict()))
    assert stored["levels"] == {"error": 0, "warning": 0, "info": 2}
    assert (stored["files_read"], stored["rows_read"], stored["outcomes"]) == (6, 48, 48)
    assert stored["questions"] == {"text_vqa": 8}
    assert len(stored["configurations"]) == 6
    assert all(len(source["sha256"]) == 64 for source in stored["sources"])
    assert str(EXAMPLE.parent) not in json.dumps(stored)


def test_other_blocks_are_left_out_of_the_cache_and_reported(tmp_path):
    old_scores = [b for b in range(16) if b not in (3, 4)]
    results = tmp_path / "results"
    put(results, tier="low", num_blocks=14)
    put(results, tier="low", num_blocks=14, rank=0, count=3, active_block_indices=old_scores)
    put(results, tier="high", num_blocks=14)
    report = import_results(results, tmp_path / "cache")
    cache = open_cache(tmp_path / "cache")
    assert [r["active_block_indices"] for r in cache.manifest.extra["imported"]["block_sets"]] == [BLOCKS[14]] * 2
    (finding,) = [f for f in report.findings if f.code == "other_blocks"]
    assert (finding.level, finding.rows, finding.file.endswith("_rank0.json")) == ("warning", 3, True)
    assert report.outcomes == 8


def test_every_configuration_keeps_the_same_block_set(tmp_path):
    old_scores = [b for b in range(16) if b not in (3, 4)]
    results = tmp_path / "results"
    put(results, tier="low", num_blocks=14, count=4)  # the current scores have most rows over all...
    put(results, tier="medium", num_blocks=14, count=4)
    put(results, tier="high", num_blocks=14, count=2, rank=0)
    put(results, tier="high", num_blocks=14, count=4, active_block_indices=old_scores)  # ...and fewer in this one
    import_results(results, tmp_path / "cache")
    manifest = open_cache(tmp_path / "cache").manifest
    assert {tuple(r["active_block_indices"]) for r in manifest.extra["imported"]["block_sets"]} == {tuple(BLOCKS[14])}


def test_missing_values_stay_missing_in_the_cache(tmp_path):
    def edit(rows):
        rows[0]["T_total"] = 0.0
        rows[1]["accuracy"] = float("nan")

    put(tmp_path / "results", edit=edit)
    import_results(tmp_path / "results", tmp_path / "cache")
    cache = open_cache(tmp_path / "cache")
    assert np.isnan(cache.latency_ms_SX[:, 0]).tolist() == [True, False, False, False]
    assert np.isnan(cache.accuracy_SX[:, 0]).tolist() == [False, True, False, False]
    assert cache.present_SX[:, 0].tolist() == [True, False, True, True]


def test_unusual_headers_still_give_a_cache(tmp_path):
    ranges = {"tier_range": {"min_crops": 0, "max_crops": 3}}
    put(tmp_path / "results", num_total_blocks=12, active_block_indices=None, **ranges)
    for top_k in (4, 6):
        put(tmp_path / "results", top_k=top_k)
    report = import_results(tmp_path / "results", tmp_path / "cache")
    manifest = open_cache(tmp_path / "cache").manifest
    assert (manifest.n_blocks, manifest.space.tier_crops) == (16, ((1, 3),))
    assert next(f.what for f in report.findings if f.code == "total_blocks_differ").endswith("12, 16")


def test_untimed_results_have_no_budgets(tmp_path):
    def edit(rows):
        for row in rows:
            row["T_total"] = 0.0

    put(tmp_path / "results", edit=edit)
    import_results(tmp_path / "results", tmp_path / "cache")
    assert open_cache(tmp_path / "cache").manifest.budgets_ms == ()


def test_options_supply_what_the_files_lack(tmp_path):
    import_results(
        EXAMPLE, tmp_path / "cache", model_name="molmoe", native_top_k=8, budgets_ms=[200, 100], metric="vqa_official"
    )
    manifest = open_cache(tmp_path / "cache").manifest
    assert (manifest.model_name, manifest.budgets_ms) == ("molmoe", (100.0, 200.0))
    assert manifest.datasets["text_vqa"]["metric"] == "vqa_official"


def test_the_same_results_give_the_same_cache(tmp_path):
    write_messy_directory(tmp_path / "results", seed=1, datasets=("okvqa",), questions=5, top_k=(4,))
    caches = []
    for name in ("one", "two"):
        import_results(tmp_path / "results", tmp_path / name)
        caches.append(open_cache(tmp_path / name))
        import_results(tmp_path / "results", tmp_path / name)  # a second import into a complete cache does nothing
    assert caches[0].fingerprint == caches[1].fingerprint
    for path in sorted((tmp_path / "one").rglob("*.parquet")):
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()


def test_a_cache_of_other_results_is_not_overwritten(tmp_path):
    import_results(EXAMPLE, tmp_path / "cache")
    with pytest.raises(CacheError, match="split_seed"):
        import_results(EXAMPLE, tmp_path / "cache", seed=1)


def test_a_strict_import_that_fails_writes_nothing(tmp_path):
    put(tmp_path / "results", top_k=4)
    broken = put(tmp_path / "results", top_k=6)
    broken.write_text(broken.read_text()[:100])
    with pytest.raises(ResultsError, match="strict"):
        import_results(tmp_path / "results", tmp_path / "cache", strict=True)
    assert not (tmp_path / "cache").exists()
