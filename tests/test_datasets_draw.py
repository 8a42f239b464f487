"""Draws and splits are seeded, do not depend on what else is drawn, and keep each image in one split."""

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knobctl.data.datasets.draw_order import draw_order
from knobctl.data.datasets.sample_set import load_samples
from knobctl.tests.support.dataset_files import coco_vqa, rows, write_parquet


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return coco_vqa(tmp_path_factory.mktemp("coco"), n=90)


def ids(loaded):
    return [sample.sample_id for sample in loaded.samples]


def test_a_smaller_draw_is_part_of_a_larger_one(folder):
    sets = [set(ids(load_samples("coco_2014_vqa", source=folder, limit=n, seed=3))) for n in (1, 10, 40, 90)]
    assert [len(found) for found in sets] == [1, 10, 40, 90]
    assert all(small < large for small, large in pairwise(sets))


def test_a_sample_is_the_same_in_every_draw(folder):
    whole = {sample.sample_id: sample for sample in load_samples("coco_2014_vqa", source=folder, seed=3).samples}
    part = load_samples("coco_2014_vqa", source=folder, limit=20, seed=3)
    assert all(whole[sample.sample_id] == sample for sample in part.samples)


def test_the_draw_depends_on_the_seed_alone(folder):
    first, again, other = (load_samples("coco_2014_vqa", source=folder, limit=20, seed=s) for s in (1, 1, 2))
    assert first == again
    assert first.fingerprint == again.fingerprint
    assert ids(first) != ids(other)
    assert first.fingerprint != other.fingerprint


def test_sample_ids_are_unique_and_in_the_order_of_the_source(folder):
    loaded = load_samples("coco_2014_vqa", source=folder)
    assert len(set(ids(loaded))) == 90
    assert ids(loaded)[:4] == [f"coco_2014_vqa/{i}" for i in (42000, 42001, 42002, 43000)]


def test_no_image_is_in_two_splits(tmp_path):
    path = write_parquet(tmp_path / "v.parquet", rows(600, questions_per_image=3), row_group_size=600)
    splits = {}
    for sample in load_samples("text_vqa", source=path).samples:
        assert splits.setdefault(sample.image_id, sample.split) == sample.split
    counts = Counter(splits.values())
    assert counts.total() == 200
    # 70/10/20 of 200; three standard deviations of a binomial are 19, 13 and 17
    assert abs(counts["train"] - 140) < 20
    assert abs(counts["val"] - 20) < 14
    assert abs(counts["test"] - 40) < 18


def test_a_limit_above_the_number_of_samples_gives_a_warning(folder):
    loaded = load_samples("coco_2014_vqa", source=folder, limit=1000)
    assert len(loaded.samples) == 90
    assert any("90 usable samples, fewer than the 1000 requested" in warning for warning in loaded.warnings)


def test_an_empty_split_gives_a_warning(folder):
    loaded = load_samples("coco_2014_vqa", source=folder, limit=1)
    assert any("no sample is in" in warning for warning in loaded.warnings)


@given(st.lists(st.text(), unique=True, max_size=30), st.integers(0, 2**32), st.randoms())
def test_the_draw_does_not_depend_on_the_order_of_the_rows(question_ids, seed, random):
    shuffled = list(question_ids)
    random.shuffle(shuffled)
    drawn = [question_ids[row] for row in draw_order("d", question_ids, seed)]
    assert drawn == [shuffled[row] for row in draw_order("d", shuffled, seed)]
    assert sorted(drawn) == sorted(question_ids)
