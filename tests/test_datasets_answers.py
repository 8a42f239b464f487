"""Answers in every form in which sources write them; unusable rows are skipped and counted."""

import json
import os
from decimal import Decimal

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from knobctl.data.datasets.records import answer_texts
from knobctl.data.datasets.sample_set import load_samples
from knobctl.data.errors import DatasetError
from knobctl.data.metrics import score
from knobctl.tests.support.dataset_files import coco_vqa, png, rows, write_json, write_json_lines, write_parquet

GOOD = {"image": "a.png", "question": "what?", "answers": ["cat"]}


def read(value, answer_field="answer"):
    return answer_texts(value, answer_field, "f.jsonl, line 1")


@pytest.mark.parametrize(
    ("value", "answers"),
    [
        ('["red", "blue"]', ("red", "blue")),
        (' [ "red" ,\n null, 3]\n', ("red", "3")),
        ('[{"answer": "red", "answer_id": 1}, {"answer": "blue"}]', ("red", "blue")),
        ('{"answer": "red"}', ("red",)),
        ({"answer": ["red", "blue"], "answer_id": [1, 2]}, ("red", "blue")),
        (["red", None, "", " \n", "red"], ("red", "red")),
        (["red", float("nan")], ("red",)),
        (3, ("3",)),
        ([3, 3.0, 0.5, Decimal("2.00"), True, False], ("3", "3", "0.5", "2", "true", "false")),
        ("(2, 3)", ("(2, 3)",)),
        ("[email protected] shop", ("[email protected] shop",)),
        ('("hello")', ('("hello")',)),
        ("b's", ("b's",)),
        (["['red', 'blue']"], ("['red', 'blue']",)),
        ([{"answer": '["red"]'}], ('["red"]',)),
    ],
)
def test_answers_are_read_in_every_form(value, answers):
    assert read(value) == answers


@pytest.mark.parametrize(
    "text",
    [
        "['red', 'blue']",
        "['red' 'blue']",
        "[None, 'red']",
        "['red', 'bl",
        '["red", "bl',
        "[{'answer': 'red'}]",
        "{'answer': 'red'}",
        "{'red', 'blue'}",
        "('red', 'blue')",
        "('red',)",
        "array(['red', 'blue'], dtype=object)",
        "np.str_('red')",
        "dict_values(['red'])",
        "[array(['red'])]",
        "b'red'",
        "[b'red']",
        "[red, blue]",
        "[unclear]",
        '"[\\"red\\"]"',
        "0    red\n1    blue\nName: answers, dtype: object",
        "[NaN]",
    ],
)
def test_a_printed_list_is_refused_unless_it_is_the_only_item_of_a_list(text):
    with pytest.raises(DatasetError, match=r"f\.jsonl, line 1: `answers` is the text .*give a list with this one item"):
        read(text)
    assert read([text]) == (text,)


def test_a_printed_list_is_refused_in_every_format(tmp_path):
    (tmp_path / "a.png").write_bytes(png(0))
    text = "['red', 'blue']"
    parquet = write_parquet(tmp_path / "a.parquet", rows(2, answers=[text] * 2))
    own = write_json_lines(tmp_path / "a.jsonl", [GOOD | {"answers": text}])
    for path, where in ((parquet, r"a\.parquet, row \d"), (own, r"a\.jsonl, line 1")):
        with pytest.raises(DatasetError, match=where):
            load_samples("mine", source=path)
    parquet = write_parquet(tmp_path / "a.parquet", rows(2, answers=['["red", "blue"]'] * 2))
    assert load_samples("mine", source=parquet).samples[0].answers == ("red", "blue")


@pytest.mark.parametrize("value", [None, [], "", " ", [" ", "\t"], [None], "[]", "[null]", '{"answer": ""}'])
def test_blank_answers_do_not_count_as_answers(value):
    with pytest.raises(DatasetError, match="has no answers"):
        read(value)


def test_an_empty_prediction_does_not_match_a_blank_answer():
    assert score("exact_match", "", [" "]) == 0
    assert score("exact_match", " ", ["", "cat"]) == 0
    assert score("exact_match", "Cat", ["", "cat"]) == 1


DICTIONARY = pa.array(["red", "blue", "red", "green"]).dictionary_encode()


def test_dictionary_encoded_answers_are_read_as_text(tmp_path):
    path = tmp_path / "a.parquet"
    struct = pa.StructArray.from_arrays([DICTIONARY, pa.array([1, 2, 3, 4])], ["answer", "answer_id"])
    forms = {
        ("red",): DICTIONARY,
        ("red", "blue"): pa.ListArray.from_arrays([0, 2, 3, 4, 4], DICTIONARY),
        ("red", "blue", "red"): pa.ListArray.from_arrays([0, 3, 4, 4, 4], struct),
    }
    for answers, column in forms.items():
        table = rows(4).to_arrow().drop_columns(["answers"]).append_column("answers", column)
        pq.write_table(table.slice(0, 1), path)
        assert load_samples("mine", source=path).samples[0].answers == answers
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    names = pl.Series(["0.png", "1.png", "2.png", "3.png"], dtype=pl.Categorical())
    table = rows(4, image=names, question=names, question_id=names, image_id=names)
    loaded = load_samples("mine", source=write_parquet(path, table))
    assert [sample.sample_id for sample in loaded.samples] == [f"mine/{i}.png" for i in range(4)]
    assert loaded.samples[3].image.read_bytes() == png(3)


def test_numbers_in_parquet_become_text(tmp_path):
    for values, answers in (
        (pl.Series([[0.1, 3.0]] * 2, dtype=pl.List(pl.Float32)), ("0.1", "3")),
        (pl.Series([7, 7], dtype=pl.Int16), ("7",)),
        (pl.Series([True, True]), ("true",)),
        (pl.Series(["1.50", "1.50"]).cast(pl.Decimal(5, 2)), ("1.50",)),
    ):
        path = write_parquet(tmp_path / "a.parquet", rows(2, answers=values))
        assert load_samples("mine", source=path).samples[0].answers == answers


# Rows that are skipped


def assert_refused_or_skipped(name, source, where, reason, *, good, skipped):
    """Without --skip-bad the error names file and row; with it, the rows are skipped and counted."""
    with pytest.raises(DatasetError, match=f"{where}.*{reason}.*--skip-bad"):
        load_samples(name, source=source)
    loaded = load_samples(name, source=source, skip_bad=True)
    assert (len(loaded.samples), len(loaded.skipped)) == (good, skipped)
    assert loaded.to_dict()["skipped"]["count"] == skipped
    return loaded


def test_lines_that_are_not_json_or_have_a_null_id(tmp_path):
    (tmp_path / "a.png").write_bytes(png(0))
    path = write_json_lines(tmp_path / "own.jsonl", [GOOD, GOOD | {"question_id": None}, GOOD])
    assert_refused_or_skipped("mine", path, r"own\.jsonl, line 2", "`question_id` must be", good=2, skipped=1)
    path.write_text(path.read_text() + json.dumps(GOOD)[:30])
    loaded = assert_refused_or_skipped("mine", path, r"own\.jsonl, line 4", "not JSON", good=2, skipped=2)
    assert {row.where.rpartition(", ")[2] for row in loaded.skipped} == {"line 2", "line 4"}


def test_null_ids_in_parquet_and_official_files(tmp_path):
    path = write_parquet(tmp_path / "v.parquet", rows(4, question_id=[0, None, 2, 3]))
    loaded = assert_refused_or_skipped("mine", path, r"v\.parquet, row 1", "`question_id` must be", good=3, skipped=1)
    assert loaded.samples[1].image.ref == "v.parquet#2"
    coco_vqa(tmp_path / "coco", n=6)
    path = tmp_path / "coco" / "v2_OpenEnded_mscoco_val2014_questions.json"
    document = json.loads(path.read_text())
    document["questions"][1]["question_id"] = None
    write_json(path, document)
    loaded = assert_refused_or_skipped(
        "coco_2014_vqa", tmp_path / "coco", "questions.json, row 1", "`question_id` must be", good=5, skipped=1
    )
    assert loaded.samples[1].question == "what is number 2?"


def test_repeated_rows_with_a_missing_image_are_skipped_once(tmp_path):
    (tmp_path / "a.png").write_bytes(png(0))
    bad = GOOD | {"question_id": 6, "image": "missing.png"}
    path = write_json_lines(tmp_path / "own.jsonl", [GOOD, bad, bad])
    loaded = load_samples("mine", source=path, skip_bad=True)
    assert (len(loaded.samples), len(loaded.skipped), loaded.duplicates) == (1, 1, 1)
    with pytest.raises(DatasetError, match=r"own\.jsonl, line 2: image .*missing\.png"):
        load_samples("mine", source=path)


def test_of_two_rows_with_one_id_the_first_usable_one_is_kept(tmp_path):
    (tmp_path / "a.png").write_bytes(png(0))
    entries = [GOOD | {"question_id": 1}, GOOD | {"question_id": 1, "answers": ["dog"]}]
    path = write_json_lines(tmp_path / "own.jsonl", entries)
    loaded = assert_refused_or_skipped("mine", path, r"own\.jsonl, line 2", "was already used", good=1, skipped=1)
    assert loaded.samples[0].answers == ("cat",)
    path = write_json_lines(tmp_path / "own.jsonl", [entries[0] | {"answers": None}, entries[1]])
    loaded = assert_refused_or_skipped("mine", path, r"own\.jsonl, line 1", "no answers", good=1, skipped=1)
    assert loaded.samples[0].answers == ("dog",)


def test_a_file_name_that_utf8_cannot_encode_is_refused(tmp_path):
    for folder, name in ((tmp_path / "a", "v.jsonl"), (tmp_path / "b", "v.parquet")):
        folder.mkdir()
        (folder / os.fsdecode(b"\xff-" + name.encode())).write_text("")
        with pytest.raises(DatasetError, match="lone surrogate"):
            load_samples("mine", source=next(folder.iterdir()))
    with pytest.raises(DatasetError, match="lone surrogate"):
        load_samples("mine", source=tmp_path / "b")


def test_text_that_utf8_cannot_encode_is_skipped_and_counted(tmp_path):
    (tmp_path / "a.png").write_bytes(png(0))
    path = write_json_lines(tmp_path / "own.jsonl", [GOOD, GOOD | {"question": "what \ud83d?"}])
    loaded = load_samples("mine", source=path, skip_bad=True)
    assert (len(loaded.samples), len(loaded.skipped)) == (1, 1)
    json.dumps(loaded.to_dict(), ensure_ascii=False).encode()  # the manifest can be written
