"""Properties of the importer on generated input, 2,600 cases in total."""

import io
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knobctl.data.errors import ImportanceError
from knobctl.data.importer import deduplication, import_importance, stream
from knobctl.data.importer.reading import FileReading, _to_ipc, read_result_file
from knobctl.data.importer.report import Tally
from knobctl.data.importer.result_files import ResultFile
from knobctl.data.importer.rows import MAX_TIME_MS, RowReader, plain_id
from knobctl.data.importer.stream import BrokenJson, ObjectStream
from knobctl.tests.support.results_dirs import BLOCKS, as_file

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**16), 10**16),
    st.floats(allow_nan=True, allow_infinity=True),
    st.text(max_size=12),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=6), inner, max_size=4)),
    max_leaves=12,
)
ROW_KEYS = ["sample_id", "tier", "top_k", "num_active_blocks", "output_tokens", "accuracy", "pred", "metadata"]
ROW_KEYS += ["actual_vision_tokens", "T_vision_total", "T_LLM_prefill", "T_LLM_decode", "T_total", "T_projector"]
ROW_KEYS += ["T_decode_per_step"]
METADATA_KEYS = ["example_id", "question_id", "image_id", "answers", "question"]
ids = st.one_of(st.integers(0, 50), st.text("ab/\\.\x00 ", max_size=3), scalars)
metadata = st.dictionaries(st.sampled_from(METADATA_KEYS), values, max_size=5).flatmap(
    lambda record: ids.map(lambda i: {**record, "example_id": i})
)
rows = st.one_of(
    values,
    st.builds(
        lambda row, meta: {**row, "metadata": meta},
        st.dictionaries(st.sampled_from(ROW_KEYS), values, max_size=len(ROW_KEYS)),
        st.one_of(values, metadata),
    ),
)


def same(one, other):
    """Equal JSON, where NaN equals NaN."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def read_all(data):
    found = []
    header = ObjectStream(io.BytesIO(data)).read("rows", lambda _, row: found.append(row))
    return header, found


@settings(max_examples=500, deadline=None, derandomize=True)
@given(
    header=st.dictionaries(st.text(max_size=8).filter(lambda key: key != "rows"), values, max_size=4),
    elements=st.lists(values, max_size=5),
    rows_first=st.booleans(),
    indent=st.sampled_from([None, 0, 2]),
    ascii_only=st.booleans(),
    chunk=st.integers(1, 40),
)
def test_the_stream_reads_the_same_as_the_standard_library(header, elements, rows_first, indent, ascii_only, chunk):
    content = {"rows": elements, **header} if rows_first else {**header, "rows": elements}
    text = json.dumps(content, indent=indent, ensure_ascii=ascii_only)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "CHUNK_BYTES", chunk)  # values are split at chunk ends
        read_header, read_rows = read_all(text.encode("utf-8", "surrogatepass"))
    assert same(read_header, header)
    assert same(read_rows, elements)


TEMPLATE = json.dumps({"tier": "low", "n": 1.5e3, "rows": [{"a": [1, math.nan]}, {"b": "\u00e9\\"}], "z": None})


@settings(max_examples=600, deadline=None, derandomize=True)
@given(data=st.data())
def test_damaged_text_is_broken_json_or_still_valid_json(data):
    text = bytearray(TEMPLATE.encode())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(text)))
        removed = data.draw(st.integers(0, 6))
        text[place : place + removed] = data.draw(st.binary(max_size=4))
    try:
        header, found = read_all(bytes(text))
    except BrokenJson:
        return
    content = json.loads(bytes(text).decode("utf-8-sig"))
    found_rows = content.pop("rows", None)
    read_rows = header.pop("rows", found)
    assert same(read_rows, found_rows)
    assert same(header, content)


@settings(max_examples=700, deadline=None, derandomize=True)
@given(elements=st.lists(rows, max_size=4))
def test_no_row_crashes_the_reader_and_no_invalid_value_passes(elements):
    tally = Tally("file")
    reader = RowReader(tally, tier="low", top_k=4, num_blocks=12)
    for index, row in enumerate(elements):
        reader.add(index, row)
    table = reader.table()
    assert reader.rows_read == len(elements)
    for row in table.to_pylist():
        assert plain_id(row["example_id"]) == row["example_id"]
        assert row["accuracy"] is None or 0 <= row["accuracy"] <= 1
        for name in ("latency_ms", "vision_ms", "prefill_ms"):
            assert row[name] is None or 0 <= row[name] <= MAX_TIME_MS
        for name in ("vision_tokens", "output_tokens"):
            assert row[name] is None or row[name] >= 1
        if row["decode_ms"] == 0:
            assert row["output_tokens"] == 1 or elements[row["row"]]["T_LLM_decode"] > 0
    reported = sum(finding.rows for finding in tally.findings() if "row left out" in finding.done)
    assert reported == len(elements) - table.num_rows


@settings(max_examples=300, deadline=None, derandomize=True)
@given(value=values)
def test_an_id_is_valid_text_or_none(value):
    name = plain_id(value)
    assert name is None or (name.isprintable() and not set(name) & set("/\\") and 0 < len(name) <= 200)
    assert name is None or plain_id(name) == name


measurement = st.tuples(
    st.integers(0, 5),  # question
    st.sampled_from([None, 0.0, 0.5, 1.0]),  # accuracy
    st.sampled_from([None, 10.0, 20.0]),  # latency
)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(files=st.lists(st.lists(measurement, max_size=6), min_size=1, max_size=4).filter(any))
def test_each_question_is_kept_once_with_its_most_complete_measurement(files):
    readings = []
    for index, measured in enumerate(files):
        reader = RowReader(Tally("file"), tier="low", top_k=4, num_blocks=12)
        for place, (question, accuracy, latency_ms) in enumerate(measured):
            row = {"accuracy": accuracy, "T_total": latency_ms, "metadata": {"example_id": question}}
            reader.add(place, row)
        file = ResultFile(None, f"f{index}", "text_vqa", "low", 2, 4, 12, None, 0)
        readings.append(FileReading(file, (), len(measured), "", _to_ipc(reader.table()), tuple(BLOCKS[12])))
    joined = deduplication.join_readings(readings)
    settled, _, _ = deduplication.settle_questions(joined)
    kept, findings = deduplication.count_once(settled)
    everything = [m for measured in files for m in measured]
    assert sorted(kept["example_id"]) == sorted({str(question) for question, _, _ in everything})
    for row in kept.to_dicts():
        of_question = [(a, t) for question, a, t in everything if str(question) == row["example_id"]]
        best = min(2 * (a is None) + (t is None) for a, t in of_question)
        first = next((a, t) for a, t in of_question if 2 * (a is None) + (t is None) == best)
        assert (row["accuracy"], row["latency_ms"]) == first
    counted = sum(f.rows for f in findings if f.code in ("repeats", "leftover_rows"))
    assert counted == len(everything) - kept.height


@settings(max_examples=60, deadline=None, derandomize=True)
@given(elements=st.lists(rows, max_size=3), changes=st.dictionaries(st.sampled_from(
    ["tier", "tier_range", "top_k", "num_active_blocks", "num_total_blocks", "active_block_indices", "num_samples"]
), values, max_size=3))  # fmt: skip
def test_no_file_crashes_the_reader(tmp_path_factory, elements, changes):
    path = tmp_path_factory.mktemp("any") / "any.json"
    content = as_file([], "low", 4, 12, BLOCKS[12]) | changes | {"per_sample_results": elements}
    path.write_bytes(json.dumps(content).encode())
    file = ResultFile(path, "any.json", "text_vqa", "low", 2, 4, 12, None, path.stat().st_size)
    reading = read_result_file(file)
    assert reading.table_ipc is not None or reading.findings
    for finding in reading.findings:
        assert finding.what.isprintable()


scores = st.one_of(st.floats(-1, 1), st.integers(-5, 5))
layouts = st.sampled_from(["plain", "merged_scores", "train_scores", "importance_scores", "text_vqa_scores"])


@settings(max_examples=200, deadline=None, derandomize=True)
@given(numbers=st.lists(scores, min_size=16, max_size=16), layout=layouts, inner=st.booleans(), reverse=st.booleans())
def test_scores_are_found_in_generated_layouts(tmp_path_factory, numbers, layout, inner, reverse):
    blocks = {str(b): s for b, s in enumerate(numbers) if not inner or b not in (0, 15)}
    path = tmp_path_factory.mktemp("scores") / "scores.json"
    path.write_text(json.dumps(blocks if layout == "plain" else {"dataset_name": "text_vqa", layout: blocks}))
    sign = -1 if reverse else 1
    expected = [None if inner and b in (0, 15) else sign * float(s) for b, s in enumerate(numbers)]
    assert list(import_importance([path], reverse=reverse).scores) == expected


@settings(max_examples=200, deadline=None, derandomize=True)
@given(content=st.one_of(
    values,
    st.dictionaries(st.integers(0, 17).map(str), st.one_of(scores, values), max_size=18),
    st.fixed_dictionaries({"merged_scores": values, "method": values, "ranking": values}),
    st.fixed_dictionaries({"block_idx": values, "importance_score": values}),
))  # fmt: skip
def test_no_score_file_crashes_the_reader(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("scores") / "scores.json"
    path.write_bytes(json.dumps(content).encode())
    try:
        found = import_importance([path])
    except ImportanceError as error:
        found, message = None, str(error)
    if found is None:
        assert str(path.parent) in message
    else:
        assert found.n_blocks == 16
        assert all(score is None or math.isfinite(score) for score in found.scores)


def test_the_properties_cover_two_thousand_cases():
    tests = [value for name, value in globals().items() if name.startswith("test_") and hasattr(value, "hypothesis")]
    cases = [test._hypothesis_internal_use_settings.max_examples for test in tests]
    assert sum(cases) >= 2_000
