"""Rescoring recomputes accuracy from stored answers, copies everything else and does not change the old cache."""

import hashlib
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from knobctl.data.cache.reader import open_cache
from knobctl.data.cache.verify import verify_cache
from knobctl.data.cache.writer import CacheWriter
from knobctl.data.errors import CacheError, DatasetError
from knobctl.data.metrics import score
from knobctl.data.rescore import metrics_from_options, rescore
from knobctl.tests.support.caches import make_cache


def digests(folder):
    return {p.relative_to(folder): hashlib.sha256(p.read_bytes()).digest() for p in folder.rglob("*") if p.is_file()}


def rewritten(cache, table, change):
    """Replaces a table of `cache` with a single part after `change`, as another program might write it."""
    parts = sorted((cache / table).glob("*.parquet"))
    whole = change(pa.concat_tables([pq.read_table(part) for part in parts]))
    for part in parts:
        part.unlink()
    pq.write_table(whole, cache / table / "part-other.parquet")
    manifest = (cache / "cache.json").read_text()
    (cache / "cache.json").write_text(without_files(manifest))


def without_files(manifest):
    record = json.loads(manifest)
    return json.dumps({key: value for key, value in record.items() if key not in ("files", "manifest_sha256")})


@pytest.fixture
def cache(tmp_path):
    return make_cache(tmp_path / "cache", samples=12, budget_encoder=None)


def test_accuracy_is_recomputed_from_the_stored_answers(cache, tmp_path):
    before = digests(cache)
    rescore(cache, "vqa_simple", tmp_path / "new")
    old, new = open_cache(cache, tokens=False), open_cache(tmp_path / "new")
    answers = new.outcome_column("answer")
    references = new.samples["answers"].to_list()
    expected = [[score("vqa_simple", text, references[s]) for text in row] for s, row in enumerate(answers)]
    np.testing.assert_array_equal(new.accuracy_SX, np.float32(expected))
    assert set(np.unique(new.accuracy_SX)) == {0, np.float32(1 / 3)}  # with one answer each, a third at most
    assert set(np.unique(old.accuracy_SX)) == {0, 1}
    assert digests(cache) == before


def test_everything_else_is_unchanged(cache, tmp_path):
    rescore(cache, "exact_match", tmp_path / "new")
    old, new = open_cache(cache, derived=tmp_path / "derived"), open_cache(tmp_path / "new")
    assert new.samples.equals(old.samples)
    np.testing.assert_array_equal(new.language_feature_SD, old.language_feature_SD)
    np.testing.assert_array_equal(new.latency_ms_SX, old.latency_ms_SX)
    np.testing.assert_array_equal(new.latency_runs_ms_SXR, old.latency_runs_ms_SXR)
    np.testing.assert_array_equal(new.tokens.token_STPMD, old.tokens.token_STPMD)
    np.testing.assert_array_equal(new.accuracy_SX, old.accuracy_SX)  # the toy's accuracy is exact match
    assert new.fingerprint == old.fingerprint
    assert verify_cache(tmp_path / "new") == []


def test_the_manifest_and_the_report_record_the_change(cache, tmp_path):
    report = rescore(cache, {"odd": "vqa_simple"}, tmp_path / "new")
    new = open_cache(tmp_path / "new", tokens=False)
    assert new.manifest.datasets["odd"]["metric"] == "vqa_simple"
    assert "metric" not in new.manifest.datasets["even"]
    assert new.manifest.extra["rescored"]["metrics"] == {"odd": "vqa_simple"}
    assert new.manifest.extra["rescored"]["source_fingerprint"] == open_cache(cache, tokens=False).fingerprint
    change = report.to_dict()["datasets"]["odd"]
    odd = (new.samples["dataset"] == "odd").to_numpy()
    assert change["rows"] == odd.sum() * len(new.space.settings)
    assert change["accuracy_after"] == pytest.approx(new.accuracy_SX[odd].mean(), rel=1e-6)
    assert change["accuracy_before"] == pytest.approx(3 * change["accuracy_after"], rel=1e-6)
    assert change["rows_changed"] == (new.accuracy_SX[odd] > 0).sum()
    old = open_cache(cache, tokens=False)
    np.testing.assert_array_equal(new.accuracy_SX[~odd], old.accuracy_SX[~odd])


def test_rows_may_be_spread_over_parts_in_any_way(cache, tmp_path):
    rescore(cache, "vqa_simple", tmp_path / "expected")
    rewritten(cache, "outcomes", lambda table: table.take(np.random.default_rng(0).permutation(len(table))))
    rewritten(cache, "latency_tokens", lambda table: table)
    rescore(cache, "vqa_simple", tmp_path / "new")
    expected, new = open_cache(tmp_path / "expected"), open_cache(tmp_path / "new")
    np.testing.assert_array_equal(new.accuracy_SX, expected.accuracy_SX)
    np.testing.assert_array_equal(new.tokens.token_STPMD, expected.tokens.token_STPMD)


def test_an_unmeasured_row_stays_unmeasured(cache, tmp_path):
    def with_a_gap(table):
        columns = {name: table.column(name).to_pylist() for name in ("accuracy", "answer")}
        columns["accuracy"][7] = columns["answer"][7] = None
        for name, values in columns.items():
            index = table.column_names.index(name)
            table = table.set_column(index, name, pa.array(values, table.schema.field(name).type))
        return table

    rewritten(cache, "outcomes", with_a_gap)
    report = rescore(cache, "exact_match", tmp_path / "new")
    old, new = open_cache(cache, tokens=False), open_cache(tmp_path / "new", tokens=False)
    assert (~new.present_SX).sum() == 1
    np.testing.assert_array_equal(new.present_SX, old.present_SX)
    assert sum(change.rows for change in report.datasets.values()) == new.present_SX.sum()


def drop_answers(table):
    return table.drop_columns(["answer"])


def empty_one_answer(table):
    answers = table.column("answer").to_pylist()
    answers[5] = None
    return table.set_column(table.column_names.index("answer"), "answer", pa.array(answers, pa.string()))


@pytest.mark.parametrize(("change", "row"), [(drop_answers, 0), (empty_one_answer, 5)])
def test_rows_without_answers_are_an_error_before_anything_is_written(cache, tmp_path, change, row):
    rewritten(cache, "outcomes", change)
    with pytest.raises(CacheError, match=rf"part-other\.parquet, row {row}: stores no answer"):
        rescore(cache, "exact_match", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_samples_without_reference_answers_are_an_error(cache, tmp_path):
    rewritten(cache, "samples", lambda table: table.drop_columns(["answers"]))
    with pytest.raises(CacheError, match="stores no reference answers"):
        rescore(cache, "exact_match", tmp_path / "new")


def test_unknown_names_and_unusable_outputs_are_refused(cache, tmp_path):
    with pytest.raises(DatasetError, match="`bleu` is unknown"):
        rescore(cache, "bleu", tmp_path / "new")
    with pytest.raises(DatasetError, match="no dataset okvqa; it has even, odd"):
        rescore(cache, {"okvqa": "textvqa"}, tmp_path / "new")
    for out in (cache, cache / "inside", cache.parent):
        with pytest.raises(CacheError, match="rescoring never changes"):
            rescore(cache, "exact_match", out)
    rescore(cache, "exact_match", tmp_path / "new")
    with pytest.raises(CacheError, match="complete"):
        rescore(cache, "exact_match", tmp_path / "new")
    with pytest.raises(CacheError, match="vqa_simple"):
        rescore(cache, "vqa_simple", tmp_path / "new")


def test_an_interrupted_rescoring_is_resumed(cache, tmp_path, monkeypatch):
    write_part, written = CacheWriter.write_part, []

    def killed_at_the_third_part(writer, *tables):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(write_part(writer, *tables))

    monkeypatch.setattr(CacheWriter, "write_part", killed_at_the_third_part)
    with pytest.raises(KeyboardInterrupt):
        rescore(cache, "exact_match", tmp_path / "new")
    monkeypatch.setattr(CacheWriter, "write_part", write_part)
    report = rescore(cache, "exact_match", tmp_path / "new")
    assert sum(change.rows for change in report.datasets.values()) == open_cache(cache, tokens=False).present_SX.sum()
    assert open_cache(tmp_path / "new").fingerprint == open_cache(cache, derived=tmp_path / "d").fingerprint


def test_metric_options():
    assert metrics_from_options(["textvqa"]) == "textvqa"
    assert metrics_from_options(["okvqa=textvqa", "text_vqa=vqa_simple"]) == {
        "okvqa": "textvqa",
        "text_vqa": "vqa_simple",
    }
    for wrong in ([], ["textvqa", "vqa_simple"], ["textvqa", "okvqa=textvqa"]):
        with pytest.raises(DatasetError, match="--metric"):
            metrics_from_options(wrong)
