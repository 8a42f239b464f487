"""Rows of the split asked for, by folders, file names and columns; what does not identify it is refused and listed."""

import json

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from knobctl.data.datasets.sample_set import load_samples
from knobctl.data.datasets.source_split import SourceSplit, split_key
from knobctl.data.errors import DatasetError
from knobctl.tests.support.dataset_files import (
    coco_vqa,
    png,
    rows,
    text_vqa,
    write_json,
    write_json_lines,
    write_parquet,
)


def ids(loaded):
    return sorted(int(sample.sample_id.rpartition("/")[2]) for sample in loaded.samples)


def parts(folder, *names):
    """Writes a Parquet file of four rows under each name: the first has ids 0-3, the second 10-13, ..."""
    for n, name in enumerate(names):
        write_parquet(folder / name, rows(4, question_id=[10 * n + i for i in range(4)]))
    return folder


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["default/train/0000.parquet", "default/validation/0000.parquet", "default/test/0000.parquet"], 1),
        (["VQAv2-train-00000-of-00001.parquet", "VQAv2-validation-00000-of-00001.parquet"], 1),
        (["mine_train.parquet", "mine_val.parquet"], 1),
        (["Training/a.parquet", "Dev/a.parquet"], 1),
        (["data.VALID.parquet", "data.eval.parquet"], 0),
        (["train2014/0.parquet", "val2014/0.parquet", "test-dev2015/0.parquet"], 1),
    ],
)
def test_folders_and_file_names_give_the_split(tmp_path, names, wanted):
    loaded = load_samples("text_vqa", source=parts(tmp_path / "mirror", *names))
    assert ids(loaded) == [10 * wanted + i for i in range(4)]
    assert loaded.to_dict()["source_split"] == "validation"


@pytest.mark.parametrize(
    "names",
    [
        ["a.parquet", "b.parquet"],
        ["validation.parquet", "extra.parquet"],
        ["train/validation-0.parquet", "validation/a.parquet"],
        ["trainval.parquet", "test.parquet"],
        ["train.parquet", "test.parquet"],
        ["train/0.parquet"],
    ],
)
def test_file_names_that_leave_the_split_open_are_refused_and_listed(tmp_path, names):
    source = parts(tmp_path / "mirror", *names)
    with pytest.raises(DatasetError, match=r"split `validation`") as refused:
        load_samples("text_vqa", source=source)
    assert all(name in str(refused.value) for name in names)
    assert len(load_samples("text_vqa", source=source, source_split="all").samples) == 4 * len(names)


def test_the_path_of_a_folder_or_file_gives_its_split(tmp_path):
    parts(tmp_path / "mirror", "train/0.parquet", "validation/0.parquet", "validation/1.parquet")
    assert ids(load_samples("text_vqa", source=tmp_path / "mirror" / "validation")) == [*range(10, 14), *range(20, 24)]
    assert ids(load_samples("text_vqa", source=tmp_path / "mirror" / "validation" / "0.parquet")) == [10, 11, 12, 13]
    for path in ("train", "train/0.parquet"):
        with pytest.raises(DatasetError, match=r"no files of split `validation`, only of train"):
            load_samples("text_vqa", source=tmp_path / "mirror" / path)
    assert ids(load_samples("text_vqa", source=tmp_path / "mirror" / "train", source_split="train")) == [0, 1, 2, 3]


def test_a_single_unmarked_file_is_read_with_a_warning_unless_a_split_is_requested(tmp_path):
    path = write_parquet(tmp_path / "mine.parquet", rows(4))
    loaded = load_samples("text_vqa", source=path)
    assert len(loaded.samples) == 4
    assert loaded.to_dict()["source_split"] is None
    assert any("does not name its split" in warning for warning in loaded.warnings)
    with pytest.raises(DatasetError, match=r"does not identify .* split `val`.*mine\.parquet.*--source-split"):
        load_samples("text_vqa", source=path, source_split="val")
    own = load_samples("mine", source=path)
    assert (len(own.samples), own.source_split) == (4, None)
    assert not any("does not name its split" in warning for warning in own.warnings)


SPLITS = ["train", "validation"] * 2


@pytest.mark.parametrize("column", ["split", "set_name", "Split"])
@pytest.mark.parametrize(
    "values",
    [
        pa.array(SPLITS),
        pa.array(SPLITS).dictionary_encode(),
        pa.array(["TRAIN", "Val"] * 2, pa.large_string()),
        pa.array([b"train", b"dev"] * 2),
        pa.array(["train2014", None, "train2014", "val2014"]),
    ],
    ids=str,
)
def test_a_column_of_any_text_type_gives_the_split(tmp_path, column, values):
    path = tmp_path / "all.parquet"
    pq.write_table(rows(4).to_arrow().append_column(column, values), path)
    assert ids(load_samples("text_vqa", source=path)) == [i for i in (1, 3) if values[i].is_valid]


def test_a_categorical_column_gives_the_split(tmp_path):
    for kind in (pl.Categorical(), pl.Enum(["train", "validation"])):
        path = write_parquet(tmp_path / "all.parquet", rows(4, split=pl.Series(SPLITS, dtype=kind)))
        assert ids(load_samples("text_vqa", source=path)) == [1, 3]


def labelled(path, values, feature, column="split"):
    """Writes a column of whole numbers with the metadata that Hugging Face `datasets` writes for class labels."""
    table = rows(4).to_arrow()
    if column in table.column_names:
        table = table.drop_columns([column])
    table = table.append_column(column, pa.array(values))
    metadata = {} if feature is None else {"huggingface": json.dumps({"info": {"features": {column: feature}}})}
    pq.write_table(table.replace_schema_metadata(metadata), path)
    return path


NAMES = {"names": ["train", "validation"], "_type": "ClassLabel"}


def test_class_labels_are_replaced_by_the_names_in_the_metadata(tmp_path):
    path = labelled(tmp_path / "all.parquet", [1, 0, 0, 1], NAMES)
    assert ids(load_samples("text_vqa", source=path)) == [0, 3]
    colours = {"names": ["red", "blue"], "_type": "ClassLabel"}
    path = labelled(tmp_path / "all.parquet", [1, 0, 0, 1], colours, "answers")
    assert [sample.answers for sample in load_samples("mine", source=path).samples] == [
        ("blue",),
        ("red",),
        ("red",),
        ("blue",),
    ]
    for feature in ({"feature": colours, "_type": "Sequence"}, [colours]):
        path = labelled(tmp_path / "all.parquet", [[1, 0], [0], [0], [1]], feature, "answers")
        assert load_samples("mine", source=path).samples[0].answers == ("blue", "red")


@pytest.mark.parametrize(
    "values", [[0, 1, 0, 1], [0.0, 1.0, 0.0, 1.0], [True, False, True, False], [["train"], ["val"]] * 2]
)
def test_a_column_without_class_names_is_refused_with_its_values(tmp_path, values):
    path = labelled(tmp_path / "all.parquet", values, None)
    with pytest.raises(DatasetError, match=r"no rows of split `validation`.*column `split` with .*, "):
        load_samples("text_vqa", source=path)
    assert len(load_samples("mine", source=path).samples) == 4


def test_a_column_filters_within_the_named_files(tmp_path):
    write_parquet(tmp_path / "mirror" / "validation.parquet", rows(4, set_name=["val", "val", "train", "val"]))
    write_parquet(tmp_path / "mirror" / "train.parquet", rows(4, set_name=["train"] * 4))
    assert ids(load_samples("text_vqa", source=tmp_path / "mirror")) == [0, 1, 3]
    write_parquet(tmp_path / "mirror" / "extra.parquet", rows(4, question_id=range(10, 14), set_name=["train"] * 4))
    assert ids(load_samples("text_vqa", source=tmp_path / "mirror")) == [0, 1, 3]
    with pytest.raises(DatasetError, match=r"no rows of split `test`.*'train', 'val'"):
        load_samples("text_vqa", source=tmp_path / "mirror" / "validation.parquet", source_split="test")


def test_an_empty_column_gives_no_split(tmp_path):
    table = rows(4).with_columns(split=pl.lit(None, pl.String))
    loaded = load_samples("text_vqa", source=write_parquet(tmp_path / "mirror" / "validation.parquet", table))
    assert len(loaded.samples) == 4
    with pytest.raises(DatasetError, match="does not identify"):
        load_samples("text_vqa", source=write_parquet(tmp_path / "b.parquet", table), source_split="validation")


def test_a_split_of_another_name_is_taken_literally(tmp_path):
    source = parts(tmp_path / "mirror", "val_seen-0.parquet", "val_unseen-0.parquet", "fold1.parquet", "fold2.parquet")
    assert ids(load_samples("mine", source=source, source_split="val_unseen")) == [10, 11, 12, 13]
    assert ids(load_samples("mine", source=source, source_split="fold2")) == [30, 31, 32, 33]
    with pytest.raises(DatasetError, match=r"split `fold3`.*fold1\.parquet, fold2\.parquet"):
        load_samples("mine", source=source, source_split="fold3")


def test_an_address_with_wildcards_gets_the_split_from_its_files(tmp_path):
    parts(tmp_path / "m", "train/0.parquet", "validation/0.parquet")
    address = f"file://{tmp_path}/m"
    assert ids(load_samples("text_vqa", source=f"{address}/**/*.parquet")) == [10, 11, 12, 13]
    with pytest.raises(DatasetError, match=r"split `test`.*train/0\.parquet, validation/0\.parquet"):
        load_samples("text_vqa", source=f"{address}/**/*.parquet", source_split="test")
    with pytest.raises(DatasetError, match=r"only of train"):
        load_samples("text_vqa", source=f"{address}/train/0.parquet")


def lines(folder, *names):
    (folder / "a.png").parent.mkdir(parents=True, exist_ok=True)
    for n, name in enumerate(names):
        entry = {"image": "a.png", "question": "q?", "answers": ["a"], "question_id": n}
        path = write_json_lines(folder / name, [entry])
        (path.parent / "a.png").write_bytes(png(0))
    return folder


def test_json_lines_by_name_and_by_field(tmp_path):
    assert ids(load_samples("text_vqa", source=lines(tmp_path / "a", "train.jsonl", "dev.jsonl"))) == [1]
    assert ids(load_samples("text_vqa", source=lines(tmp_path / "b", "train/x.jsonl", "val/x.jsonl"))) == [1]
    for path in ("c", "c/train.jsonl"):
        lines(tmp_path / "c", "train.jsonl")
        with pytest.raises(DatasetError, match=r"only of train; it has files train\.jsonl"):
            load_samples("text_vqa", source=tmp_path / path)
    with pytest.raises(DatasetError, match=r"several files.*x\.jsonl, y\.jsonl"):
        load_samples("mine", source=lines(tmp_path / "d", "x.jsonl", "y.jsonl"))
    entry = {"image": "a.png", "question": "q?", "answers": ["a"]}
    for field in ("split", "set_name"):
        own = write_json_lines(tmp_path / "a" / "x.jsonl", [entry | {field: "train"}, entry | {field: "val"}])
        assert ids(load_samples("mine", source=own, source_split="validation")) == [2]
        with pytest.raises(DatasetError, match=r"no rows of split `test`.*'train', 'val'"):
            load_samples("mine", source=own, source_split="test")
    unmarked = write_json_lines(tmp_path / "a" / "y.jsonl", [entry])
    with pytest.raises(DatasetError, match=r"does not identify.*y\.jsonl"):
        load_samples("mine", source=unmarked, source_split="train")


def test_official_files_whose_content_is_of_another_split(tmp_path):
    coco_vqa(tmp_path)
    for name in ("OpenEnded_mscoco_val2014_questions", "mscoco_val2014_annotations"):
        path = tmp_path / f"v2_{name}.json"
        write_json(path, json.loads(path.read_text()) | {"data_subtype": "train2014"})
    with pytest.raises(DatasetError, match=r"split `validation`.*'train2014'"):
        load_samples("coco_2014_vqa", source=tmp_path)
    path = text_vqa(tmp_path) / "TextVQA_0.5.1_val.json"
    document = json.loads(path.read_text())
    for i, item in enumerate(document["data"]):
        item["set_name"] = "val" if i == 2 else "train"
    write_json(path, document)
    assert ids(load_samples("text_vqa", source=tmp_path)) == [34604]
    with pytest.raises(DatasetError, match="official files"):
        load_samples("text_vqa", source=tmp_path, source_split="all")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("val", "validation"),
        ("Val2014", "validation"),
        ("dev", "validation"),
        ("training", "train"),
        (" test ", "test"),
        ("test-dev2015", "test"),
        ("eval", "test"),
        ("val_unseen", "val_unseen"),
        ("0", "0"),
        ("trainval", "trainval"),
    ],
)
def test_spellings_of_a_split(text, key):
    assert split_key(text) == key
    assert SourceSplit(key).matches(text)


def test_a_bundled_dataset_has_the_splits_of_its_files():
    assert load_samples("easy_vqa", limit=3).source_split == "test"
    assert load_samples("easy_vqa", limit=3, source_split="train").source_split == "train"
    with pytest.raises(DatasetError, match=r"no files of split `validation`.*test\.parquet, train\.parquet"):
        load_samples("easy_vqa", source_split="validation")
