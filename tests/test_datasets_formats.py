"""Every format that is read: official files, Parquet mirrors with their quirks, Parquet and JSON Lines of users."""

import hashlib
import json

import numpy as np
import polars as pl
import pytest

from knobctl.data.datasets.cache_split import cache_split
from knobctl.data.datasets.image_refs import ImageRoots, image_from_ref
from knobctl.data.datasets.images import decode_image
from knobctl.data.datasets.registry import DATASETS
from knobctl.data.datasets.sample_set import load_samples
from knobctl.data.paths import BUNDLED_ROOT
from knobctl.tests.support.dataset_files import (
    coco_vqa,
    png,
    rows,
    text_vqa,
    write_json,
    write_json_lines,
    write_parquet,
)

UNKNOWN_ROOTS = ImageRoots("any", None, None)


def by_id(sample_set):
    return {sample.sample_id: sample for sample in sample_set.samples}


# Official files


def test_vqa_v2_official_files(tmp_path):
    loaded = load_samples("coco_2014_vqa", source=coco_vqa(tmp_path))
    assert len(loaded.samples) == 12
    assert (loaded.metric, loaded.max_new_tokens, loaded.style) == ("vqa_official", 16, "vqa2")
    sample = by_id(loaded)["coco_2014_vqa/43001"]
    assert sample.question == "what is number 4?"
    assert sample.answers == ("down", "up") * 5
    assert sample.image_id == "43"
    assert sample.image.ref == "val2014/COCO_val2014_000000000043.jpg"
    assert sample.image.read_bytes() == png(43)
    assert sample.split == cache_split("43", 0)


def test_okvqa_takes_the_raw_answer_by_default_and_the_stem_on_request(tmp_path):
    folder = coco_vqa(tmp_path, prefix="")
    loaded = load_samples("okvqa", source=folder)
    assert (loaded.metric, loaded.style, loaded.answer_field) == ("textvqa", "okvqa", "raw_answer")
    assert loaded.samples[0].answers == ("racing",) * 10
    stemmed = load_samples("okvqa", source=folder, answer_field="answer")
    assert stemmed.samples[0].answers == ("race",) * 10
    assert stemmed.answer_field == "answer"
    assert stemmed.fingerprint != loaded.fingerprint


def test_the_images_of_text_vqa_val_are_in_train_images(tmp_path):
    loaded = load_samples("text_vqa", source=text_vqa(tmp_path))
    assert (loaded.metric, loaded.max_new_tokens, loaded.style) == ("textvqa", 64, "text_vqa")
    sample = by_id(loaded)["text_vqa/34605"]
    assert sample.image.ref == "train_images/0000000000000001.jpg"
    assert sample.image.read_bytes() == png(1)
    assert loaded.answer_field is None


def test_files_may_lie_in_the_folders_that_the_archives_unpack_to(tmp_path):
    coco_vqa(tmp_path / "flat")
    (tmp_path / "annotations").mkdir()
    for file in (tmp_path / "flat").glob("*.json"):
        file.rename(tmp_path / "annotations" / file.name)
    (tmp_path / "flat" / "val2014").rename(tmp_path / "photos")
    loaded = load_samples("coco_2014_vqa", source=tmp_path, images=tmp_path / "photos")
    assert loaded.samples[0].image.ref == "COCO_val2014_000000000042.jpg"
    assert loaded.images_root == tmp_path / "photos"


def test_datasets_that_share_images_put_an_image_in_one_split(tmp_path):
    vqa = load_samples("coco_2014_vqa", source=coco_vqa(tmp_path, n=90))
    okvqa = load_samples("okvqa", source=coco_vqa(tmp_path, n=90, prefix=""))
    splits = {}
    for sample in (*vqa.samples, *okvqa.samples):
        assert splits.setdefault(sample.image_id, sample.split) == sample.split
    assert set(splits.values()) == {"train", "val", "test"}


def test_the_train_split_of_official_files(tmp_path):
    coco_vqa(tmp_path, subtype="train2014")
    loaded = load_samples("coco_2014_vqa", source=tmp_path, source_split="train")
    assert loaded.samples[0].image.ref == "train2014/COCO_train2014_000000000042.jpg"


def test_an_id_may_be_a_number_or_text(tmp_path):
    coco_vqa(tmp_path)
    path = tmp_path / "v2_mscoco_val2014_annotations.json"
    document = json.loads(path.read_text())
    for i, annotation in enumerate(document["annotations"]):
        annotation["question_id"] = [str, float, int][i % 3](annotation["question_id"])
    write_json(path, document)
    assert len(load_samples("coco_2014_vqa", source=tmp_path).samples) == 12


# Parquet mirrors


def test_vqa_v2_mirror_with_answer_objects(tmp_path):
    objects = [[{"answer": "down", "answer_confidence": "yes", "answer_id": i + 1} for i in range(10)]] * 10
    table = rows(answers=objects, multiple_choice_answer=["down"] * 10, question_type=["what"] * 10)
    write_parquet(tmp_path / "data" / "validation-00000-of-00001.parquet", table)
    loaded = load_samples("coco_2014_vqa", source=tmp_path)
    assert loaded.answer_field == "answer"
    sample = by_id(loaded)["coco_2014_vqa/7"]
    assert sample.answers == ("down",) * 10
    assert sample.image_id == "3"
    assert sample.image.ref == "data/validation-00000-of-00001.parquet#7"
    assert sample.image.read_bytes() == png(3)


def test_ok_vqa_mirror_has_text_ids_and_no_image_id(tmp_path):
    table = rows(image_id=None, question_id=[f"{i:07d}" for i in range(10)])
    path = write_parquet(tmp_path / "val2014-00000-of-00001.parquet", table)
    loaded = load_samples("okvqa", source=path)
    sample = by_id(loaded)["okvqa/0000007"]
    assert sample.image_id == hashlib.sha256(png(3)).hexdigest()
    assert loaded.answer_field is None  # the mirror does not say which of the two answers it has
    assert sample.image_id == by_id(loaded)["okvqa/0000006"].image_id
    unchecked = load_samples("okvqa", source=path, check_images=False)
    assert unchecked.samples == loaded.samples


def test_ok_vqa_script_mirror_has_both_answers(tmp_path):
    objects = [[{"answer": "race", "raw_answer": "racing", "answer_confidence": "yes", "answer_id": 1}]] * 10
    path = write_parquet(tmp_path / "validation.parquet", rows(answers=objects))
    assert load_samples("okvqa", source=path).samples[0].answers == ("racing",)
    assert load_samples("okvqa", source=path, answer_field="answer").samples[0].answers == ("race",)


def test_only_the_files_of_the_split_are_read(tmp_path):
    write_parquet(tmp_path / "data" / "train-00000-of-00001.parquet", rows(4))
    write_parquet(tmp_path / "data" / "validation-00000-of-00002.parquet", rows(4))
    write_parquet(tmp_path / "data" / "validation-00001-of-00002.parquet", rows(4, question_id=[4, 5, 6, 7]))
    assert len(load_samples("text_vqa", source=tmp_path).samples) == 8
    assert len(load_samples("text_vqa", source=tmp_path, source_split="train").samples) == 4


def test_shards_may_disagree_about_the_type_of_an_id(tmp_path):
    write_parquet(tmp_path / "validation-0.parquet", rows(4))
    write_parquet(tmp_path / "validation-1.parquet", rows(4, question_id=["4", "5", "6", "7"]))
    assert set(by_id(load_samples("text_vqa", source=tmp_path))) == {f"text_vqa/{i}" for i in range(8)}


def test_one_file_with_several_splits_is_filtered(tmp_path):
    path = write_parquet(tmp_path / "all.parquet", rows(set_name=["train", "val"] * 5))
    loaded = load_samples("text_vqa", source=path)
    assert [sample.image.ref for sample in loaded.samples] == [f"all.parquet#{i}" for i in range(1, 10, 2)]


def test_repeated_rows_are_read_once_and_counted(tmp_path):
    table = rows(4)
    path = write_parquet(tmp_path / "a.parquet", pl.concat([table, table.head(3)]))
    loaded = load_samples("text_vqa", source=path)
    assert len(loaded.samples) == 4
    assert loaded.duplicates == 3
    assert any("3 repeated rows" in warning for warning in loaded.warnings)


def test_a_url_with_wildcards_is_read_and_its_images_are_found_by_row(tmp_path):
    write_parquet(tmp_path / "validation-0.parquet", rows(6))
    write_parquet(tmp_path / "validation-1.parquet", rows(6, question_id=list(range(6, 12))))
    loaded = load_samples("text_vqa", source=f"file://{tmp_path}/validation-*.parquet")
    assert len(loaded.samples) == 12
    sample = by_id(loaded)["text_vqa/10"]
    assert sample.image.row == 4
    assert sample.image.read_bytes() == png(2)
    assert image_from_ref(sample.image.ref, UNKNOWN_ROOTS).read_bytes() == png(2)


# Datasets of users


def test_json_lines_of_a_user(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a b.png").write_bytes(png(1))
    entries = [
        {"image": "photos/a b.png", "question": "Wie heißt es?", "answers": ["Straße", "straße"]},
        {"image": "photos/a b.png", "question": "one answer?", "answer": "yes", "question_id": "q-2", "image_id": 9},
    ]
    loaded = load_samples("mine", source=write_json_lines(tmp_path / "mine.jsonl", entries))
    assert (loaded.metric, loaded.style) == ("exact_match", None)
    first, second = by_id(loaded)["mine/1"], by_id(loaded)["mine/q-2"]
    assert first.answers == ("Straße", "straße")
    assert first.image_id == hashlib.sha256(png(1)).hexdigest()
    assert (second.answers, second.image_id) == (("yes",), "9")


@pytest.mark.parametrize("as_path", [False, True])
def test_parquet_of_a_user_with_bytes_or_paths(tmp_path, as_path):
    for i in range(5):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    images = [f"{i // 2}.png" if as_path else png(i // 2) for i in range(10)]
    path = write_parquet(tmp_path / "mine.parquet", rows(image=images, answers=["cat"] * 10, question_id=None))
    loaded = load_samples("mine", source=path)
    sample = by_id(loaded)["mine/7"]
    assert sample.answers == ("cat",)
    assert sample.image.read_bytes() == png(3)
    assert sample.image.ref == ("3.png" if as_path else "mine.parquet#7")


def test_an_image_struct_without_bytes_names_a_file(tmp_path):
    (tmp_path / "0.png").write_bytes(png(0))
    path = write_parquet(tmp_path / "mine.parquet", rows(2, image=[{"bytes": None, "path": "0.png"}] * 2))
    assert load_samples("mine", source=path).samples[1].image.read_bytes() == png(0)


def test_the_metric_and_limits_can_be_chosen(tmp_path):
    path = write_parquet(tmp_path / "mine.parquet", rows())
    loaded = load_samples("mine", source=path, metric="vqa_simple", max_new_tokens=5)
    assert (loaded.metric, loaded.max_new_tokens) == ("vqa_simple", 5)
    assert loaded.to_dict()["metric"] == "vqa_simple"


# All formats


def test_large_row_groups_are_streamed(tmp_path, monkeypatch):
    from knobctl.data.datasets import parquet_images

    path = write_parquet(tmp_path / "validation.parquet", rows(40, questions_per_image=1), row_group_size=40)
    monkeypatch.setattr(parquet_images, "_KEPT_COLUMN_BYTES", 0)
    for sample in load_samples("text_vqa", source=path).samples:
        assert sample.image.read_bytes() == png(int(sample.image_id))


@pytest.mark.parametrize("name", ["easy_vqa", "small_print"])
def test_samples_of_bundled_datasets_were_not_seen_by_nano(name):
    loaded = load_samples(name, limit=20)
    assert loaded.metric == "exact_match"
    table = pl.read_parquet(BUNDLED_ROOT / name / "*.parquet", columns=["question_id", "split"])
    unseen = set(table.filter(pl.col("split") == "test")["question_id"])
    assert {sample.sample_id.removeprefix(f"{name}/") for sample in loaded.samples} <= unseen
    for sample in loaded.samples:
        pixels = decode_image(sample.image.read_bytes(), sample.image.ref)
        assert pixels.std() > 0
        np.testing.assert_array_equal(
            pixels, decode_image(image_from_ref(sample.image.ref, UNKNOWN_ROOTS).read_bytes(), sample.image.ref)
        )


def test_every_known_dataset_has_a_style_and_a_known_metric():
    assert set(DATASETS) == {"text_vqa", "coco_2014_vqa", "okvqa", "easy_vqa", "small_print"}
    assert {name: spec.metric for name, spec in DATASETS.items() if not spec.bundled} == {
        "text_vqa": "textvqa",
        "coco_2014_vqa": "vqa_official",
        "okvqa": "textvqa",
    }


def test_images_are_found_through_what_the_manifest_records(tmp_path, monkeypatch):
    lines = write_json_lines(tmp_path / "own" / "mine.jsonl", [{"image": "a.png", "question": "q?", "answers": ["a"]}])
    (tmp_path / "own" / "a.png").write_bytes(png(1))
    parquet = write_parquet(tmp_path / "mirror" / "data" / "validation-0.parquet", rows(2)).parent.parent
    monkeypatch.chdir(tmp_path)
    for name, source in (("mine", "own/mine.jsonl"), ("mine", lines), ("text_vqa", parquet), ("easy_vqa", None)):
        loaded = load_samples(name, source=source, limit=1)
        roots = ImageRoots.recorded(name, loaded.to_dict())
        image = loaded.samples[0].image
        expected = image.read_bytes()
        monkeypatch.chdir("/")
        assert image_from_ref(image.ref, roots).read_bytes() == expected
        monkeypatch.chdir(tmp_path)
