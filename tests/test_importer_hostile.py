"""Untrusted files: size, depth, duplicate keys, huge numbers, wrong types, odd names. No crash, bounded memory."""

import json
import os
import random
import tracemalloc

import pytest

from knobctl.data.errors import ResultsError
from knobctl.data.importer import recorded_outcomes, result_files, rows, stream
from knobctl.data.importer.rows import plain_id
from knobctl.data.printable import printable
from knobctl.tests.support.results_dirs import BLOCKS, as_file, make_questions, measure, write

NAME = "text-vqa_imgsizetier-low_crops2_topk4_blocks12.json"


@pytest.fixture
def root(tmp_path):
    """A directory with one valid configuration, which other files must not affect."""
    rng = random.Random(1)
    good = [{"sample_id": i, **measure(q, "low", 8, 16, rng)} for i, q in enumerate(make_questions("text_vqa", 3))]
    write(tmp_path, "text_vqa", as_file(good, "low", 8, 16, BLOCKS[16]))
    return tmp_path


def one_row(**changes):
    row = measure(make_questions("text_vqa", 1)[0], "low", 4, 12, random.Random(2))
    return {"sample_id": 0, **row, **changes}


def import_beside(root, text):
    """Adds a file with `text`; returns the rows of its configuration and its findings."""
    path = root / "text-vqa" / NAME
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    recorded = recorded_outcomes(root)
    assert recorded.table.filter(recorded.table["top_k"] == 8).height == 3
    of_file = [finding for finding in recorded.report.findings if finding.file.endswith(NAME)]
    return recorded.table.filter(recorded.table["top_k"] == 4).to_dicts(), of_file


def file_text(*file_rows, **changes):
    content = as_file((one_row(),), "low", 4, 12, BLOCKS[12])
    return json.dumps(content | {"per_sample_results": file_rows, "num_samples": len(file_rows)} | changes)


DEEP = 100_000


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty file"),
        ("   \n", "empty file"),
        ("\0\0\0\0", "not JSON"),
        ("[]", "not JSON"),
        ("{", "cut off"),
        ('{"tier": "low", "per_sample_results": [', "cut off"),
        ('{"tier": "low", "per_sample_results": [1,', "cut off"),
        ('{"per_sample_results": []} trailing', "more text after"),
        ('{"per_sample_results": []}{"per_sample_results": []}', "more text after"),
        ('{"per_sample_results": [], "per_sample_results": []}', "duplicate key"),
        ('{"tier": "low", "tier": "high", "per_sample_results": []}', "duplicate key"),
        ('{"a": ' + "[" * DEEP, "nested too deep"),
        ('{"per_sample_results": [' + '{"a":' * DEEP, "nested too deep"),
        ('{"per_sample_results": [{"metadata": ' + "[" * DEEP + "]" * DEEP + "}]}", "nested too deep"),
        (b'{"tier": "l\xffw"}', "not UTF-8"),
        ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
        ('{1: 2, "per_sample_results": []}', "not a string"),
        ('{"a": undefined}', "not JSON"),
        ("{" + ",".join(f'"{i}": 1' for i in range(1002)) + "}", "more than 1,000 keys"),
    ],
)
def test_a_file_that_is_not_one_complete_object_is_left_out(root, text, reason):
    rows_found, findings = import_beside(root, text)
    assert rows_found == []
    assert [finding.code for finding in findings] == ["unreadable_file"]
    assert reason in findings[0].what


@pytest.mark.parametrize("value", ["null", "{}", '"text"', "17", "true"])
def test_rows_that_are_not_a_list_are_not_results(root, value):
    _, findings = import_beside(root, f'{{"per_sample_results": {value}}}')
    assert [finding.code for finding in findings] == ["not_results"]


@pytest.mark.parametrize("row", [None, 3, "text", [], [1, 2], True, {"metadata": [1]}, {"metadata": "x"}])
def test_rows_of_the_wrong_type_are_counted(root, row):
    rows_found, findings = import_beside(root, file_text(one_row(), row))
    assert len(rows_found) == 1
    assert [(f.code, f.rows, f.examples) for f in findings] == [("malformed_row", 1, ("row 1",))]


def test_a_row_with_a_duplicate_key_is_left_out(root):
    text = file_text(one_row(), one_row())
    twice = text.replace('"accuracy": ', '"accuracy": 0.25, "accuracy": ', 2)  # the file's own, then the first row's
    once = twice.replace('"accuracy": 0.25, "accuracy": ', '"accuracy": ', 1)
    rows_found, findings = import_beside(root, once)
    assert len(rows_found) == 1
    assert [(f.code, f.rows) for f in findings] == [("duplicate_keys", 1)]
    in_metadata = text.replace('"example_id": ', '"example_id": 1, "example_id": ', 1)
    rows_found, findings = import_beside(root, in_metadata)
    assert [(f.code, f.rows) for f in findings] == [("duplicate_keys", 1)]


@pytest.mark.parametrize(
    ("key", "value", "code", "column"),
    [
        ("T_total", "-1.0", "bad_time", "latency_ms"),
        ("T_total", "Infinity", "bad_time", "latency_ms"),
        ("T_total", "-Infinity", "bad_time", "latency_ms"),
        ("T_total", "NaN", "missing_time", "latency_ms"),
        ("T_total", "1e999", "bad_time", "latency_ms"),
        ("T_total", "1e300", "bad_time", "latency_ms"),
        ("T_total", "9" * 5000, "bad_time", "latency_ms"),
        ("T_total", "-" + "9" * 5000, "bad_time", "latency_ms"),
        ("T_total", '"12.5"', "bad_time", "latency_ms"),
        ("T_total", "true", "bad_time", "latency_ms"),
        ("T_total", "[12.5]", "bad_time", "latency_ms"),
        ("T_LLM_decode", "-0.001", "bad_time", "decode_ms"),
        ("accuracy", "-0.1", "bad_accuracy", "accuracy"),
        ("accuracy", "1.0001", "bad_accuracy", "accuracy"),
        ("accuracy", "Infinity", "bad_accuracy", "accuracy"),
        ("accuracy", "true", "bad_accuracy", "accuracy"),
        ("accuracy", '"1.0"', "bad_accuracy", "accuracy"),
        ("accuracy", "{}", "bad_accuracy", "accuracy"),
        ("output_tokens", "-3", "bad_value", "output_tokens"),
        ("output_tokens", "2.5", "bad_value", "output_tokens"),
        ("output_tokens", "99999999999999999999", "bad_value", "output_tokens"),
        ("actual_vision_tokens", '"many"', "bad_value", "vision_tokens"),
        ("pred", "17", "bad_value", "answer"),
        ("pred", '["a"]', "bad_value", "answer"),
    ],
)
def test_an_invalid_value_is_missing(root, key, value, code, column):
    text = file_text(one_row(**{key: "REPLACE"})).replace('"REPLACE"', value)
    (row,), findings = import_beside(root, text)
    assert row[column] is None
    assert [finding.rows for finding in findings if finding.code == code] == [1]


@pytest.mark.parametrize(
    "value",
    ['"../../etc/passwd"', '"a/b"', '"a\\\\b"', '".."', '""', '" 5"', '"a\\u0000b"', '"\\u001b[31m"', '"\\ud800"',
     "true", "[5]", "{}", "5.5", "NaN", "Infinity", "1e400", "9" * 30, '"' + "x" * 300 + '"'],
)  # fmt: skip
def test_rows_with_invalid_ids_are_left_out(root, value):
    row = one_row()
    row["metadata"]["example_id"] = "REPLACE"
    rows_found, findings = import_beside(root, file_text(row).replace('"REPLACE"', value))
    assert rows_found == []
    assert findings[0].code == "bad_identity"
    assert findings[0].what.isprintable()


def test_valid_ids():
    assert [plain_id(v) for v in (5, "5", 5.0, "62ad30d32c236b09", -3, "0005")] == [
        "5",
        "5",
        "5",
        "62ad30d32c236b09",
        "-3",
        "0005",
    ]


def test_lone_surrogates_are_replaced_and_reported(root):
    text = file_text(one_row(pred="REPLACE")).replace("REPLACE", "\\ud83d\\ude00 and \\ud800")
    (row,), findings = import_beside(root, text)
    assert row["answer"] == "\U0001f600 and �"
    assert "replaced_characters" in {finding.code for finding in findings}


@pytest.mark.parametrize("blocks", ["[[0]]", '["0"]', "[-1, 2]", "[16]", "[0.5]", "7", "[]", "[true]", "[1e9]"])
def test_invalid_block_lists_mean_unknown_blocks(root, blocks):
    text = file_text(one_row(), active_block_indices="REPLACE").replace('"REPLACE"', blocks)
    (row,), findings = import_beside(root, text)
    assert row["active_block_indices"] is None
    assert [finding.code for finding in findings if finding.level == "error"] == ["bad_block_list"]


def test_rows_that_contradict_their_file_are_left_out(root):
    bad = [one_row(tier="high"), one_row(top_k=8), one_row(num_active_blocks=16), one_row(top_k="4")]
    rows_found, findings = import_beside(root, file_text(one_row(), *bad))
    assert len(rows_found) == 1
    assert sum(f.rows for f in findings if f.code == "contradictory_row") == 4


# Memory


def test_memory_is_bounded_by_a_row_and_not_by_the_file(root):
    row = json.dumps(one_row(T_decode_per_step=[[1.0] * 5] * 2_000))
    path = root / "text-vqa" / NAME
    with path.open("w") as file:
        file.write('{"tier": "low", "top_k": 4, "num_active_blocks": 12, "per_sample_results": [')
        for _ in range(500):
            file.write(row + ",")
        file.write(row + "]}")
    assert path.stat().st_size > 25 * 2**20
    tracemalloc.start()
    try:
        recorded = recorded_outcomes(root, workers=1)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert recorded.report.rows_read == 504
    assert peak < 12 * 2**20


def test_an_endless_line_is_read_up_to_the_limit(root, monkeypatch):
    monkeypatch.setattr(stream, "MAX_VALUE_CHARS", 1 << 20)
    monkeypatch.setattr(stream, "CHUNK_BYTES", 1 << 16)
    for start in ('{"tier": "', '{"per_sample_results": [{"pred": "', '{"a": 1', '{"per_sample_results": [['):
        filler = "1," if start.endswith("[[") else "9" if start.endswith("1") else "x"
        rows_found, findings = import_beside(root, start + filler * (4 << 20))
        assert rows_found == []
        assert "one value of more than 1,048,576 characters" in findings[0].what


def test_a_sparse_file_of_terabytes_is_refused_without_reading(root):
    path = root / "text-vqa" / NAME
    with path.open("wb") as file:
        file.truncate(5 << 30)
    try:
        report = recorded_outcomes(root).report
    finally:
        path.unlink()
    (finding,) = [f for f in report.findings if f.file.endswith(NAME)]
    assert "larger than 4 GiB" in finding.what


def test_too_many_rows_are_refused(root, monkeypatch):
    monkeypatch.setattr(stream, "MAX_ROWS", 100)
    _, findings = import_beside(root, '{"per_sample_results": [' + "0," * 200 + "0]}")
    assert "more than 100 rows" in findings[0].what


def test_many_bad_rows_are_one_finding(root):
    _, findings = import_beside(root, '{"tier": "low", "per_sample_results": [' + "0," * 9_999 + "0]}")
    assert [(f.code, f.rows) for f in findings if f.code == "malformed_row"] == [("malformed_row", 10_000)]


# Names and kinds of files


@pytest.mark.parametrize("make", ["fifo", "dangling link", "directory", "unreadable"])
def test_special_files_are_reported_and_never_opened(root, make):
    path = root / "text-vqa" / NAME
    if make == "fifo":
        os.mkfifo(path)
    elif make == "dangling link":
        path.symlink_to(root / "nowhere")
    elif make == "directory":
        path.mkdir()
    else:
        path.write_text(file_text(one_row()))
        path.chmod(0)
        if os.access(path, os.R_OK):
            pytest.skip("this user may read everything")
    recorded = recorded_outcomes(root)
    assert recorded.table.height == 3
    assert [f.code for f in recorded.report.findings if f.file.endswith(NAME)] in (
        ["unreadable_file"],
        ["nested_directory"],
    )


@pytest.mark.parametrize(
    "name",
    [
        "text-vqa_imgsizetier-low_crops2_topk999_blocks12.json",
        "text-vqa_imgsizetier-low_crops2_topk4_blocks0.json",
        "text-vqa_imgsizetier-low_crops2_topk4_blocks" + "9" * 80 + ".json",
        "text-vqa_imgsizetier-low_crops2_topk٤_blocks12.json",
        "text-vqa_imgsizetier-low_crops2_topk4_blocks12.json.bak.json",
        "\x1b[31mred.json",
    ],
)
def test_odd_names_are_escaped_and_affect_only_their_file(root, name):
    (root / "text-vqa" / name).write_text(file_text(one_row()))
    recorded = recorded_outcomes(root)
    assert recorded.table.height == 3
    (finding,) = [f for f in recorded.report.findings if f.file]
    assert finding.file.isprintable()


def test_a_name_that_is_not_utf_8_is_escaped(root):
    path = os.fsencode(root / "text-vqa") + b"/\xff.json"
    with open(path, "wb") as file:
        file.write(b"{}")
    report = recorded_outcomes(root).report
    (finding,) = [f for f in report.findings if f.file]
    assert finding.file.encode() == b"text-vqa/\\udcff.json"


def test_too_many_files_are_refused(root, monkeypatch):
    monkeypatch.setattr(result_files, "MAX_FILES", 2)
    for i in range(3):
        (root / "text-vqa" / f"{i}.txt").touch()
    with pytest.raises(ResultsError, match="more than 2 files"):
        recorded_outcomes(root)


def test_printable_shortens_and_escapes():
    assert printable("a\nb") == "a\\nb"
    assert printable("x" * 100, 10) == "x" * 7 + "..."
    assert printable("\ud800") == "\\ud800"


def test_limits_are_far_above_a_real_row():
    row = one_row(T_decode_per_step=[[12.345678901234567] * 5] * 63)
    assert len(json.dumps(row, indent=2)) * 100 < stream.MAX_VALUE_CHARS
    assert rows.MAX_TEXT > 10_000
