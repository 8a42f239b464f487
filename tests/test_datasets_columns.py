"""--column and --source-split: fields under other column names, and errors for names that do not exist."""

import json
from types import SimpleNamespace

import polars as pl
import pytest
from click.testing import CliRunner

from knobctl.cli import main
from knobctl.data.datasets.image_refs import ImageRoots, image_from_ref
from knobctl.data.datasets.sample_set import load_samples
from knobctl.data.datasets.source_options import column_maps, source_splits
from knobctl.data.errors import DatasetError, KnobctlError
from knobctl.precompute.run.config import PrecomputeConfig
from knobctl.precompute.run.live_from_cache import samples_of
from knobctl.tests.support.dataset_files import coco_vqa, png, rows, ten, write_json, write_json_lines, write_parquet


def test_a_parquet_dataset_with_other_column_names(tmp_path):
    table = rows(4, answers=[ten("down")] * 4, multiple_choice_answer=["up"] * 4, part=["train", "val"] * 2)
    path = write_parquet(tmp_path / "v.parquet", table.rename({"image": "picture", "question": "text"}))
    columns = {"image": "picture", "question": "text", "answers": "multiple_choice_answer", "split": "part"}
    loaded = load_samples("coco_2014_vqa", source=path, columns=columns)
    assert [sample.image.ref for sample in loaded.samples] == ["v.parquet#1", "v.parquet#3"]
    assert loaded.samples[0].answers == ("up",)
    assert loaded.samples[1].image.read_bytes() == png(1)
    assert loaded.to_dict()["columns"] == columns
    roots = ImageRoots.recorded("coco_2014_vqa", loaded.to_dict())
    assert image_from_ref("v.parquet#3", roots).read_bytes() == png(1)
    assert "columns" not in load_samples("easy_vqa", limit=1).to_dict()


def test_live_samples_are_read_from_the_column_that_the_cache_records(tmp_path):
    path = write_parquet(tmp_path / "v.parquet", rows(4).rename({"image": "picture"}))
    loaded = load_samples("mine", source=path, columns={"image": "picture"})
    table = pl.DataFrame(
        [
            {name: getattr(sample, name) for name in ("sample_id", "dataset", "split", "question", "image_id")}
            | {"answers": list(sample.answers), "image_ref": sample.image.ref}
            for sample in loaded.samples
        ]
    )
    index = {sample.sample_id: i for i, sample in enumerate(loaded.samples)}
    manifest = SimpleNamespace(datasets={"mine": loaded.to_dict()})
    cache = SimpleNamespace(samples=table, sample_index=index, manifest=manifest, path=tmp_path)
    live = samples_of(cache, list(index), None, {})
    assert [live[name].image.read_bytes() for name in index] == [s.image.read_bytes() for s in loaded.samples]


def test_json_lines_and_official_files_with_other_field_names(tmp_path):
    (tmp_path / "a.png").write_bytes(png(0))
    entry = {"file": "a.png", "question": "q?", "answers": ["a"], "short": "b", "qid": "x"}
    path = write_json_lines(tmp_path / "own.jsonl", [entry])
    columns = {"image": "file", "answers": "short", "question_id": "qid"}
    (sample,) = load_samples("mine", source=path, columns=columns).samples
    assert (sample.sample_id, sample.answers) == ("mine/x", ("b",))
    coco_vqa(tmp_path, prefix="", n=3)
    with pytest.raises(
        DatasetError, match=r"questions\.json has no column `nope`.*its columns are .*'answers'.*'question'"
    ):
        load_samples("okvqa", source=tmp_path, columns={"answers": "nope"})
    with pytest.raises(DatasetError, match="image_id"):
        load_samples("okvqa", source=tmp_path, columns={"image": "image_id"})
    path = tmp_path / "mscoco_val2014_annotations.json"
    document = json.loads(path.read_text())
    for annotation in document["annotations"]:
        annotation["multiple_choice_answer"] = "run"
    write_json(path, document)
    loaded = load_samples("okvqa", source=tmp_path, columns={"answers": "multiple_choice_answer"})
    assert [sample.answers for sample in loaded.samples] == [("run",)] * 3


def test_an_unknown_column_is_refused_with_those_that_exist(tmp_path):
    (tmp_path / "a.png").write_bytes(png(0))
    own = write_json_lines(tmp_path / "own.jsonl", [{"image": "a.png", "question": "q?", "answers": ["a"]}])
    parquet = write_parquet(tmp_path / "v.parquet", rows(4))
    for path in (own, parquet):
        with pytest.raises(
            DatasetError, match=r"no column `nope`, .*`answers`; its columns are \['answers', 'image'"
        ) as said:
            load_samples("mine", source=path, columns={"answers": "nope"})
        assert "knobctl" not in str(said.value)  # the reader's own columns are not the file's
    with pytest.raises(DatasetError, match=r"does not have the columns \['question'\], only") as said:
        load_samples("mine", source=write_parquet(tmp_path / "w.parquet", rows(4, question=None)))
    assert "knobctl:" not in str(said.value)


def test_the_options_apply_to_one_dataset_or_to_all():
    maps = column_maps(["answers=a=b", "my.data.answers=c", "x.image=picture"], ["my.data", "x"])
    assert maps == {"my.data": {"answers": "c"}, "x": {"answers": "a=b", "image": "picture"}}
    assert source_splits(["val", "x=train"], ["x", "y"]) == {"x": "train", "y": "val"}
    assert source_splits(["x=train"], ["x", "y"]) == {"x": "train"}


@pytest.mark.parametrize("option", ["answers", "answers=", "=a", "nope=a", "y.answers=a", ".answers=a"])
def test_a_malformed_column_option_is_refused(option):
    with pytest.raises(KnobctlError, match=r"--column .*(FIELD=COLUMN|is not a dataset of this run)"):
        PrecomputeConfig(model="nano", datasets=("x=p",), out="c", column=(option,))


@pytest.mark.parametrize(
    "options",
    [
        {"column": ("answers=a", "answers=b")},
        {"column": ("x.answers=a", "x.answers=b")},
        {"source_split": ("y=train",)},
        {"source_split": ("x=",)},
        {"source_split": ("train", "val")},
    ],
)
def test_options_that_contradict_each_other_or_name_no_dataset_are_refused(options):
    with pytest.raises(KnobctlError, match=r"--(column|source-split) "):
        PrecomputeConfig(model="nano", datasets=("x=p",), out="c", **options)


def test_the_command_passes_on_both_options(tmp_path):
    table = rows(6, split=["train", "val"] * 3).rename({"answers": "replies"})
    path = write_parquet(tmp_path / "v.parquet", table)
    call = [
        "precompute",
        "--model",
        "nano",
        "--dataset",
        f"mine={path}",
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "o"),
    ]
    result = CliRunner().invoke(main, [*call, "--column", "mine.answers=nope"])
    assert result.exit_code == 1
    assert "no column `nope`" in result.output
    result = CliRunner().invoke(main, [*call, "--column", "answers=replies", "--source-split", "mine=test"])
    assert result.exit_code == 1
    assert "no rows of split `test`" in result.output
    importing = ["precompute", "--from-results", str(tmp_path), "--out", str(tmp_path / "o")]
    assert CliRunner().invoke(main, [*importing, "--source-split", "val"]).exit_code == 2
