"""Complete caches: verifying every byte, merging shards, describing, and the executor that reads from one."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest

from knobctl.data.cache.describe import describe_cache
from knobctl.data.cache.executor import CacheExecutor
from knobctl.data.cache.merge import merge_caches
from knobctl.data.cache.outcomes import first_double
from knobctl.data.cache.reader import open_cache
from knobctl.data.cache.run_record import Shard
from knobctl.data.cache.verify import verify_cache
from knobctl.data.cache.writer import CacheWriter
from knobctl.data.errors import CacheError, CacheMismatch, UnknownSetting
from knobctl.data.knobs import KnobSetting
from knobctl.data.samples import Sample
from knobctl.tests.support.caches import (
    TINY_SPACE,
    foreign_cache,
    make_cache,
    outcome_table,
    put_row,
    sample_table,
    tiny_manifest,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = make_cache(tmp_path_factory.mktemp("whole") / "cache", samples=6, budget_encoder=b"encoder")
    open_cache(path).tokens.unpack()
    return path


def files_of(path):
    """All files but the card, which no digest covers."""
    files = [file for file in path.rglob("*") if file.is_file() and file.name[0] != "." and file.name != "README.md"]
    return sorted(file.relative_to(path) for file in files)


def test_an_intact_cache_has_no_problem(whole):
    assert verify_cache(whole) == []
    assert len(files_of(whole)) == 2 * 3 + 3 + 3  # parts; cache.json, run.json, encoder; the unpacked tokens


@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_verify_names_the_file_with_a_flipped_byte(whole, tmp_path, where):
    for number, file in enumerate(files_of(whole)):
        copy = tmp_path / str(number)
        shutil.copytree(whole, copy)
        data = bytearray((copy / file).read_bytes())
        place = {"first": 0, "middle": len(data) // 2, "last": len(data) - 1}[where]
        data[place] ^= 0x10
        (copy / file).write_bytes(bytes(data))
        assert str(file) in [str(problem.path.relative_to(copy)) for problem in verify_cache(copy)]


def test_open_refuses_a_flipped_byte_in_any_file_it_reads(whole, tmp_path):
    for number, file in enumerate(files_of(whole)):
        if file.parts[0] in ("derived", "cache.json", "latency_tokens"):
            continue
        copy = tmp_path / str(number)
        shutil.copytree(whole, copy)
        data = bytearray((copy / file).read_bytes())
        data[len(data) // 3] ^= 1
        (copy / file).write_bytes(bytes(data))
        with pytest.raises(CacheError, match=file.name):
            open_cache(copy)


def test_missing_and_added_files_are_named(whole, tmp_path):
    for number, file in enumerate(files_of(whole)):
        if file.parts[0] not in ("derived", "cache.json"):
            copy = tmp_path / str(number)
            shutil.copytree(whole, copy)
            (copy / file).unlink()
            assert str(copy / file) in [str(problem.path) for problem in verify_cache(copy)]
            with pytest.raises(CacheError, match=file.name):
                open_cache(copy)
    copy = tmp_path / "added"
    shutil.copytree(whole, copy)
    shutil.copy(copy / "samples" / "part-0000-000000.parquet", copy / "samples" / "part-9.parquet")
    assert [problem.path.name for problem in verify_cache(copy)] == ["part-9.parquet"]
    with pytest.raises(CacheError, match=r"part-9\.parquet is not in the list of files"):
        open_cache(copy)


def test_verify_reads_tokens_without_digests(tmp_path):
    path = foreign_cache(tmp_path / "cache", latency_tokens=put_row("token", 17, [0.0, math.nan, 0.0, 0.0]))
    problems = [str(problem) for problem in verify_cache(path)]
    assert any("lists no files" in problem for problem in problems)
    assert any("row 17" in problem for problem in problems)
    assert not (path / "derived").exists()


def test_verify_needs_a_cache(tmp_path):
    with pytest.raises(CacheError, match="does not exist"):
        verify_cache(tmp_path / "none")


def content(path):
    cache = open_cache(path)
    answer = cache.outcome_column("answer")
    return (
        cache.sample_ids,
        cache.fingerprint,
        cache.latency_ms_SX.tobytes(),
        answer.tolist(),
        cache.tokens.token_STPMD.tobytes(),
    )


@pytest.mark.parametrize("count", [1, 2, 3])
def test_rows_do_not_depend_on_the_number_of_shards(tmp_path, count):
    expected = content(make_cache(tmp_path / "one"))
    sources = [make_cache(tmp_path / f"shard{i}", shard=Shard(i, count), samples_per_part=2) for i in range(count)]
    out = tmp_path / "merged"
    merge_caches(sources[::-1], out)
    assert content(out) == expected
    assert verify_cache(out) == []
    merge_caches(sources, out)  # again: nothing left to do
    for source in sources:
        shutil.rmtree(source)
    assert content(out) == expected


def test_duplicates_are_found_without_memory_for_every_possible_cell():
    assert first_double(np.array([3, 2**40, 3, 2**40]), 2**41) == (0, 2)
    assert first_double(np.array([3, 2**40]), 2**41) is None
    assert first_double(np.array([2, 1, 0, 1]), 3) == (1, 3)


def test_a_killed_merge_is_resumed(tmp_path):
    sources = [make_cache(tmp_path / f"shard{i}", shard=Shard(i, 2), samples_per_part=2) for i in range(2)]
    out = tmp_path / "merged"
    with CacheWriter(out, json.loads((sources[0] / "run.json").read_text())["run"]) as writer:
        writer.adopt_part(sources[0], "part-0000-000001.parquet")
    (out / "outcomes" / "part-0001-000000.parquet").write_bytes(b"half")  # what a kill between two renames leaves
    merge_caches(sources, out)
    assert content(out) == content(make_cache(tmp_path / "one"))
    assert verify_cache(out) == []


def test_missing_repeated_and_unrelated_shards_are_refused(tmp_path):
    a, b, c = (make_cache(tmp_path / f"{i}", shard=Shard(i, 3), tokens=False, samples=6) for i in range(3))
    with pytest.raises(CacheError, match="missing: shard 1/3"):
        merge_caches([a, c], tmp_path / "out")
    with pytest.raises(CacheError, match="shard 0/3 is given 2 times"):
        merge_caches([a, b, c, a], tmp_path / "out")
    other = make_cache(tmp_path / "other", shard=Shard(2, 3), tokens=False, samples=6, seed=5)
    with pytest.raises(CacheMismatch, match="seed: 0 there, 5 now"):
        merge_caches([a, b, other], tmp_path / "out")
    half = tmp_path / "half"
    shutil.copytree(c, half)
    (half / "cache.json").unlink()
    with pytest.raises(CacheError, match=r"missing: shard 1/3; the rest of shard 2/3 in .*half, which has 2 samples"):
        merge_caches([a, half], tmp_path / "out")
    with pytest.raises(CacheError, match="missing: the rest of shard 2/3"):
        merge_caches([a, b, half], tmp_path / "out")
    with pytest.raises(CacheMismatch, match=r"0 is shard 0/3, but .*one is shard 0/1"):
        merge_caches([a, make_cache(tmp_path / "one", tokens=False, samples=6)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_sample_in_two_shards_is_refused(tmp_path):
    for index in range(2):
        with CacheWriter(tmp_path / str(index), {}, shard=Shard(index, 2)) as writer:
            writer.write_part(sample_table(["s1"], 4), outcome_table(["s1"], TINY_SPACE), None)
            writer.finish(tiny_manifest(d_model=4))
    with pytest.raises(CacheError, match=r"'s1' is in .*0 and in .*1"):
        merge_caches([tmp_path / "0", tmp_path / "1"], tmp_path / "out")


def test_merging_adds_up_the_datasets_rows(tmp_path):
    for index in range(2):
        with CacheWriter(tmp_path / str(index), {}, shard=Shard(index, 2)) as writer:
            writer.write_part(sample_table([f"s{index}"], 4), outcome_table([f"s{index}"], TINY_SPACE), None)
            datasets = {"d": {"train": index, "test": 1, "metric": "exact_match"}}
            writer.finish(tiny_manifest(d_model=4, datasets=datasets, extra={"runs_saved": index}))
    manifest = merge_caches([tmp_path / "0", tmp_path / "1"], tmp_path / "out")
    assert manifest.datasets == {"d": {"train": 1, "test": 2, "metric": "exact_match"}}
    assert [shard["runs_saved"] for shard in manifest.extra["shards"]] == [0, 1]


def test_the_description_counts_and_averages_what_the_cache_contains(whole, tmp_path):
    described = json.loads(json.dumps(describe_cache(whole)))
    cache = open_cache(whole)
    assert described["shape"] == {"samples": 6, "settings": 16, "budgets": 3, "d_model": 8}
    assert sum(row["samples"] for row in described["samples"]) == 6
    assert described["completeness"]["outcomes"] == {"there": 96, "of": 96}
    assert described["completeness"]["latency_tokens"] == {"there": 72, "of": 72}
    assert described["overall"]["accuracy"] == pytest.approx(cache.accuracy_SX.mean())
    high = next(row for row in described["marginals"]["tier"] if row["value"] == "high")
    chosen = [setting.tier == "high" for setting in cache.space.settings]
    assert high["accuracy"] == pytest.approx(cache.accuracy_SX[:, chosen].mean())
    assert high["latency_ms_p50"] == pytest.approx(np.median(cache.latency_ms_SX[:, chosen]))
    assert described["size_bytes"]["total"] == sum(
        (whole / file).stat().st_size for file in files_of(whole) if file.parts[0] != "derived"
    ) + len((whole / "README.md").read_bytes())
    sparse = describe_cache(foreign_cache(tmp_path / "sparse", outcomes=lambda table: table.slice(0, 4)))
    assert sparse["completeness"]["samples_without_outcomes"] == 4
    assert sparse["marginals"]["tier"][1]["accuracy"] is None  # not measured, hence not 0


def sample(sample_id: str) -> Sample:
    return Sample(sample_id, "even", "train", "what?", ("answer",), "image", None)


def test_the_executor_returns_the_caches_outcomes(whole):
    cache = open_cache(whole)
    executor = CacheExecutor(cache)
    one = sample("s0003")
    index = cache.sample_index["s0003"]
    assert executor.language_feature(one).tolist() == cache.language_feature_SD[index].tolist()
    for setting in cache.space.settings:
        token, handle = executor.latency_token(one, setting.tier, setting.insertion_position, 40.0)
        assert token.dtype == np.float16
        place = (index, cache.space.tiers.index(setting.tier), setting.insertion_position - 1, 1)
        assert token.tolist() == cache.tokens.token_STPMD[place].tolist()
        outcome = executor.finish(handle, setting.top_k, setting.num_blocks)
        cell = index, cache.space.index(setting)
        assert (outcome.accuracy, outcome.latency_ms) == (cache.accuracy_SX[cell], cache.latency_ms_SX[cell])
        assert outcome.answer == ("answer s0003" if outcome.accuracy else "no idea")
        assert (outcome.output_tokens, outcome.vision_ms) == (2, None)
        assert outcome.latency_runs_ms == tuple(cache.latency_runs_ms_SXR[cell].tolist())


def test_the_executor_refuses_unknown_samples_settings_and_budgets(whole, tmp_path):
    executor = CacheExecutor(open_cache(whole))
    one = sample("s0003")
    with pytest.raises(UnknownSetting, match="20, 40, 80"):
        executor.latency_token(one, "low", 1, 50.0)
    for tier, position in (("medium", 1), ("low", 3)):
        with pytest.raises(UnknownSetting, match="knob space"):
            executor.latency_token(one, tier, position, 40.0)
    _, handle = executor.latency_token(one, "low", 1, 40.0)
    with pytest.raises(UnknownSetting, match="knob space"):
        executor.finish(handle, 3, 4)
    with pytest.raises(CacheError, match="no sample 'other'"):
        executor.language_feature(replace(one, sample_id="other"))
    holes = foreign_cache(
        tmp_path / "holes", outcomes=lambda table: table.slice(1), latency_tokens=lambda table: table.slice(1)
    )
    cache = open_cache(holes)
    with pytest.raises(CacheError, match="no outcome of sample 'a/1' under low/p1/k2/n3"):
        CacheExecutor(cache).outcome(0, KnobSetting("low", 1, 2, 3))
    with pytest.raises(CacheError, match="no latency token of sample 'a/1'"):
        CacheExecutor(cache).latency_token(sample("a/1"), "low", 1, 20.0)
