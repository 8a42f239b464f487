"""A problem in a dataset is one error with path and row; skipped rows are counted."""

import json

import polars as pl
import pytest

from knobctl.data.datasets import json_files, parquet_images
from knobctl.data.datasets.image_refs import ImageRoots, image_from_ref
from knobctl.data.datasets.sample_set import load_samples
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

GOOD = {"image": "a.png", "question": "what?", "answers": ["cat"]}


@pytest.fixture
def own(tmp_path):
    """A function that writes entries as a JSON Lines dataset beside one image."""
    (tmp_path / "a.png").write_bytes(png(0))
    return lambda *entries: write_json_lines(tmp_path / "own.jsonl", list(entries))


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(DatasetError, match=r"`textvqa` is unknown.*text_vqa, coco_2014_vqa, okvqa, easy_vqa.*=PATH"):
        load_samples("textvqa")


@pytest.mark.parametrize("name", ["a/b", "", " a", "a#b", "a\nb", "x" * 65])
def test_a_dataset_name_that_is_unfit_for_sample_ids_is_refused(own, name):
    with pytest.raises(DatasetError, match="dataset name"):
        load_samples(name, source=own(GOOD))


def test_a_missing_path_is_named(tmp_path):
    with pytest.raises(DatasetError, match=r"nowhere does not exist: .*`text_vqa`"):
        load_samples("text_vqa", source=tmp_path / "nowhere")
    with pytest.raises(DatasetError, match=r"text_vqa does not exist"):
        load_samples("text_vqa", root=tmp_path)


def test_the_error_for_an_empty_folder_says_what_was_expected(tmp_path):
    with pytest.raises(DatasetError, match=r"TextVQA_0\.5\.1_val\.json.*Parquet"):
        load_samples("text_vqa", source=tmp_path)


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "table.csv").write_text("image,question,answers\n")
    with pytest.raises(DatasetError, match=r"table\.csv is neither \.parquet nor \.jsonl"):
        load_samples("mine", source=tmp_path / "table.csv")


def test_a_missing_answers_file_is_named(tmp_path):
    (coco_vqa(tmp_path) / "v2_mscoco_val2014_annotations.json").unlink()
    with pytest.raises(DatasetError, match=r"v2_mscoco_val2014_annotations\.json does not exist"):
        load_samples("coco_2014_vqa", source=tmp_path)


def test_files_of_two_splits_are_refused(tmp_path):
    path = coco_vqa(tmp_path) / "v2_mscoco_val2014_annotations.json"
    document = json.loads(path.read_text())
    write_json(path, document | {"data_subtype": "train2014"})
    with pytest.raises(DatasetError, match=r"'val2014'.*'train2014'.*one split"):
        load_samples("coco_2014_vqa", source=tmp_path)
    write_json(path, document | {"annotations": document["annotations"][3:]})
    with pytest.raises(DatasetError, match=r"questions\.json, row [012]: question_id 4200[012] has no answers in"):
        load_samples("coco_2014_vqa", source=tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "must hold a JSON object"),
        ("{}", "has no list `data`"),
        ('{"data": []}', "is empty"),
        ('{"data": [1]}', "row 0: must be an object"),
        ('{"data": [{"question_id": null}]}', "row 0: `question_id` must be a number or text"),
        ('{"data": ' + "[" * 100_000, "nested|JSON"),
    ],
)
def test_a_broken_official_file_is_refused(tmp_path, content, message):
    (tmp_path / "TextVQA_0.5.1_val.json").write_text(content)
    with pytest.raises(DatasetError, match=rf"TextVQA_0\.5\.1_val\.json.*({message})"):
        load_samples("text_vqa", source=tmp_path)


def test_the_size_of_an_official_file_is_bounded(tmp_path, monkeypatch):
    text_vqa(tmp_path)
    monkeypatch.setattr(json_files, "MAX_JSON_BYTES", 100)
    with pytest.raises(DatasetError, match="larger than 100 bytes"):
        load_samples("text_vqa", source=tmp_path)


def test_a_test_split_without_answers_is_refused(tmp_path):
    text_vqa(tmp_path, split="test")
    with pytest.raises(DatasetError, match=r"TextVQA_0\.5\.1_test\.json, row \d: the question has no answers"):
        load_samples("text_vqa", source=tmp_path, source_split="test")
    with pytest.raises(DatasetError, match=r"no row .* can be used: .*has no answers"):
        load_samples("text_vqa", source=tmp_path, source_split="test", skip_bad=True)


@pytest.mark.parametrize("empty", [[], [""] * 10, None])
def test_every_form_of_missing_answers_is_recognised(tmp_path, empty):
    path = write_parquet(tmp_path / "v.parquet", rows(4, answers=[["cat"], empty, ["cat"], ["cat"]]))
    with pytest.raises(DatasetError, match=r"v\.parquet, row 1: the question has no answers"):
        load_samples("text_vqa", source=path)
    loaded = load_samples("text_vqa", source=path, skip_bad=True)
    assert [sample.sample_id for sample in loaded.samples] == [f"text_vqa/{i}" for i in (0, 2, 3)]
    assert [row.where for row in loaded.skipped] == [f"{path}, row 1"]
    record = loaded.to_dict()["skipped"]
    assert record["count"] == 1
    assert record["first"][0]["where"] == f"{path}, row 1"
    assert "no answers" in record["first"][0]["reason"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": None}, r"does not have the columns \['image'\], only"),
        ({"question": None, "answers": None}, r"does not have the columns \['question', 'answers'\]"),
        ({"image": [1] * 10}, "column `image` must be"),
        ({"answers": [[[1]]] * 10}, "column `answers` must hold"),
        ({"image": [[png(0)]] * 10}, "column `image` must be .*, not List.*a row has one image"),
        ({"image": None, "images": [[png(0)]] * 10}, r"does not have the columns \['image'\].*list column `images`"),
    ],
)
def test_a_missing_or_unfit_column_is_refused(tmp_path, columns, message):
    path = write_parquet(tmp_path / "v.parquet", rows(**columns))
    with pytest.raises(DatasetError, match=rf"v\.parquet.*{message}"):
        load_samples("text_vqa", source=path)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"question": ["what?", None, "what?"]}, "row 1: `question` must be text"),
        ({"question": ["what?", " ", "what?"]}, "row 1: `question` must be text"),
        ({"answers": ["a", "['a', 'b']", "a"]}, "row 1: `answers` is the text .*looks like a printed list"),
        ({"question_id": ["1", None, "3"]}, "row 1: `question_id` must be"),
        ({"question_id": ["1", "2\x00", "3"]}, "row 1: `question_id` must be"),
        ({"image": [{"bytes": b"x", "path": None}] * 3}, r"image v\.parquet#\d cannot be decoded"),
        (
            {"image": [{"bytes": png(0), "path": ""}, {"bytes": None, "path": None}, None]},
            "neither bytes nor a path",
        ),
    ],
)
def test_an_unfit_value_is_refused_with_its_row(tmp_path, columns, message):
    path = write_parquet(tmp_path / "v.parquet", rows(3, **columns))
    with pytest.raises(DatasetError, match=message):
        load_samples("text_vqa", source=path)


def test_one_id_for_two_questions_is_refused(tmp_path):
    path = write_parquet(tmp_path / "v.parquet", rows(3, question_id=[7, 8, 7]))
    with pytest.raises(DatasetError, match=r"row 2: question_id 7 was already used at .*row 0"):
        load_samples("text_vqa", source=path)


@pytest.mark.parametrize("damage", ["text", "truncated", "page"])
def test_a_damaged_parquet_file_is_named(tmp_path, damage):
    path = write_parquet(tmp_path / "v.parquet", rows(10))
    data = path.read_bytes()
    if damage == "page":
        data = data.replace(png(3)[10:40], b"\xff" * 30)
    path.write_bytes(b"not parquet" if damage == "text" else data[:-50] if damage == "truncated" else data)
    with pytest.raises(DatasetError, match=r"v\.parquet"):
        load_samples("text_vqa", source=path)


def test_a_source_without_rows_is_refused(tmp_path, own):
    with pytest.raises(DatasetError, match=r"v\.parquet has no rows"):
        load_samples("mine", source=write_parquet(tmp_path / "v.parquet", rows(4).head(0)))
    with pytest.raises(DatasetError, match=r"own\.jsonl has no rows"):
        load_samples("mine", source=own())
    write_parquet(tmp_path / "mirror" / "validation-0.parquet", rows(4))
    with pytest.raises(DatasetError, match=r"no files of split `test`, only of validation"):
        load_samples("text_vqa", source=tmp_path / "mirror", source_split="test")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": None}, "line 2: `image` must be a path"),
        ({"image": "/etc/passwd"}, "line 2: image path '/etc/passwd' leads out of"),
        ({"image": "../secret.png"}, "line 2: image path '../secret.png' leads out of"),
        ({"image": "b.png"}, r"b\.png cannot be read .*--images"),
        ({"image": "."}, "is not a file"),
        ({"answers": [["a"]]}, "line 2: an answer must be text or a number"),
        ({"answers": {"text": "a"}}, r"line 2: an answer object has no `answer`, only \['text'\]"),
        ({"answers": ["a"] * 1001}, "line 2: there are 1,001 answers"),
        ({"image": ["a.png", "b.png"]}, "line 2: `image` is a list of 2"),
        ({"question": "what \ud83d?"}, "line 2: the question has a lone surrogate"),
        ({"answers": ["a", "\udc00"]}, "line 2: an answer has a lone surrogate"),
        ({"answers": "\udc00"}, "line 2: .*lone surrogate"),
        ({"answers": '["\\ud83d"]'}, "line 2: an answer has a lone surrogate"),
        ({"image": "\ud83d.png"}, "line 2: the image's path has a lone surrogate"),
        ({"question_id": "\ud83d"}, "line 2: `question_id` must be .*printable"),
        ({"image_id": "\ud83d"}, "line 2: `image_id` must be .*printable"),
        ({"question": "x" * 30_000}, "line 2: the question has 30,000 characters"),
        ({"question_id": True}, "line 2: `question_id` must be"),
    ],
)
def test_an_unfit_line_is_refused_with_its_number(own, change, message):
    with pytest.raises(DatasetError, match=message):
        load_samples("mine", source=own(GOOD, GOOD | change))


def test_the_error_for_a_line_without_an_image_lists_its_fields(own):
    with pytest.raises(
        DatasetError, match=r"line 1: the fields \['image'\] are missing; it has \['answers', 'question'\]"
    ):
        load_samples("mine", source=own({"question": "q?", "answers": ["a"]}))


def test_a_line_that_is_not_json_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(png(0))
    (tmp_path / "own.jsonl").write_bytes(json.dumps(GOOD).encode() + b"\n\xff\xfe\n")
    with pytest.raises(DatasetError, match=r"own\.jsonl, line 2.* JSON"):
        load_samples("mine", source=tmp_path / "own.jsonl")


@pytest.mark.parametrize("damage", ["empty", "truncated", "gone"])
def test_an_unreadable_image_is_an_error_or_skipped_and_counted(tmp_path, damage):
    coco_vqa(tmp_path)
    path = tmp_path / "val2014" / "COCO_val2014_000000000043.jpg"
    data = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes(data[: len(data) // 2] if damage == "truncated" else b"")
    with pytest.raises(DatasetError, match=r"COCO_val2014_000000000043\.jpg"):
        load_samples("coco_2014_vqa", source=tmp_path)
    loaded = load_samples("coco_2014_vqa", source=tmp_path, skip_bad=True)
    assert len(loaded.samples) == 9
    assert len(loaded.skipped) == 3
    assert any("3 unusable rows were skipped" in warning for warning in loaded.warnings)
    assert not any(sample.image_id == "43" for sample in loaded.samples)


def test_bad_rows_that_are_not_drawn_are_neither_errors_nor_counted(tmp_path):
    coco_vqa(tmp_path, n=60)
    whole = load_samples("coco_2014_vqa", source=tmp_path, limit=5)
    used = {sample.image_id for sample in whole.samples}
    unused = next(str(i) for i in range(42, 62) if str(i) not in used)
    (tmp_path / "val2014" / f"COCO_val2014_{int(unused):012d}.jpg").write_bytes(b"")
    assert load_samples("coco_2014_vqa", source=tmp_path, limit=5) == whole


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 0}, "at least 1"),
        ({"metric": "bleu"}, "`bleu` is unknown"),
        ({"answer_field": "stem"}, "answer or raw_answer"),
        ({"source": "s3://bucket/x.parquet"}, "s3:// is not supported"),
    ],
)
def test_an_unfit_option_is_refused(tmp_path, options, message):
    with pytest.raises(DatasetError, match=message):
        load_samples("coco_2014_vqa", **{"source": coco_vqa(tmp_path), **options})


def test_images_must_be_a_folder(tmp_path):
    with pytest.raises(DatasetError, match="photos is not a folder"):
        load_samples("coco_2014_vqa", source=coco_vqa(tmp_path), images=tmp_path / "photos")


def roots_at(folder):
    return ImageRoots("mine", str(folder), folder)


@pytest.mark.parametrize("ref", ["../x.png", "/etc/passwd", "../x.parquet#0", "bundled:../x.parquet#0"])
def test_an_image_reference_that_leads_out_of_its_folder_is_refused(tmp_path, ref):
    with pytest.raises(DatasetError, match="leads out"):
        image_from_ref(ref, roots_at(tmp_path))


def test_an_image_reference_needs_its_folder():
    with pytest.raises(DatasetError, match="--images"):
        image_from_ref("train_images/a.jpg", ImageRoots("mine", None, None))


def test_a_reference_to_a_row_beyond_the_file_is_refused(tmp_path):
    write_parquet(tmp_path / "v.parquet", rows(4))
    with pytest.raises(DatasetError, match=r"v\.parquet, row 9, cannot be read \(the file has 4 rows\)"):
        image_from_ref("v.parquet#9", roots_at(tmp_path)).read_bytes()


def test_a_metric_that_can_never_give_a_full_score_gives_a_warning(tmp_path):
    path = write_parquet(tmp_path / "v.parquet", rows(4, answers=[["cat"]] * 4))
    warnings = load_samples("mine", source=path, metric="vqa_simple").warnings
    assert any("fewer than 3 answers" in warning for warning in warnings)
    assert not any("answers" in warning for warning in load_samples("mine", source=path).warnings)


def test_polars_never_reads_the_image_column(tmp_path, monkeypatch):
    path = write_parquet(tmp_path / "v.parquet", rows(6))
    collected = []
    collect = pl.LazyFrame.collect

    def spy(frame, *args, **kwargs):
        result = collect(frame, *args, **kwargs)
        collected.append(result.columns)
        return result

    monkeypatch.setattr(pl.LazyFrame, "collect", spy)
    load_samples("text_vqa", source=path)
    assert collected
    assert not any("image" in columns for columns in collected)


def test_a_file_that_unpacks_to_far_more_than_its_size_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_images, "_UNPACKED_BYTES", 1 << 20)
    texts = ["what is it? " + "a" * 19_000] * 500
    table = rows(500, question=[f"{i}{text}" for i, text in enumerate(texts)])
    path = write_parquet(tmp_path / "v.parquet", table, row_group_size=500)
    with pytest.raises(DatasetError, match="column `question` unpacks to"):
        load_samples("text_vqa", source=path)


def test_a_reference_into_a_file_without_images_is_refused(tmp_path):
    write_parquet(tmp_path / "v.parquet", rows(4, image=None))
    with pytest.raises(DatasetError, match="no column `image`"):
        image_from_ref("v.parquet#1", roots_at(tmp_path)).read_bytes()
