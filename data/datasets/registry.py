"""The datasets known by name: prompt style, metric, token limit, and the locations of their files and mirrors."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import DatasetError


@dataclass(frozen=True)
class DatasetSpec:
    """The settings of a dataset."""

    name: str
    style: str | None  # prefix of the user text in MolmoE's training and evaluation; None: no prefix
    metric: str
    max_new_tokens: int
    source_split: str | None = "validation"  # split of the published dataset to read; None: all rows
    answer_field: str = "answer"  # read from an answer object
    bundled: bool = False
    hub: str | None = None  # mirror that is read if no files are named; mirrors move, and `NAME=hf://...` overrides it
    hub_files: str = "data/{split}-*.parquet"
    questions_file: str | None = None  # official files; {split} is train, val, ...
    annotations_file: str | None = None
    image_folders: tuple[str, ...] = ()
    image_name: str = "{image_id}.jpg"


_COCO_IMAGES = ("{split}2014", "images/{split}2014", "images", ".")

DATASETS: dict[str, DatasetSpec] = {
    spec.name: spec
    for spec in (
        DatasetSpec(
            name="text_vqa",
            style="text_vqa",
            metric="textvqa",
            max_new_tokens=64,
            hub="hf://datasets/lmms-lab/textvqa",
            questions_file="TextVQA_0.5.1_{split}.json",
            # The published archive has the images of `val` in the folder of `train`.
            image_folders=("train_images", "train_val_images/train_images", "images/train_images", "images"),
        ),
        DatasetSpec(
            name="coco_2014_vqa",
            style="vqa2",
            metric="vqa_official",
            max_new_tokens=16,
            hub="hf://datasets/lmms-lab/VQAv2",
            questions_file="v2_OpenEnded_mscoco_{split}2014_questions.json",
            annotations_file="v2_mscoco_{split}2014_annotations.json",
            image_folders=_COCO_IMAGES,
            image_name="COCO_{split}2014_{image_id:0>12}.jpg",
        ),
        DatasetSpec(
            name="okvqa",
            style="okvqa",
            metric="textvqa",
            max_new_tokens=16,
            # What the person wrote, as in MolmoE's training and evaluation; `answer` is its stem.
            answer_field="raw_answer",
            hub="hf://datasets/lmms-lab/OK-VQA",
            hub_files="data/val2014-*.parquet",
            questions_file="OpenEnded_mscoco_{split}2014_questions.json",
            annotations_file="mscoco_{split}2014_annotations.json",
            image_folders=_COCO_IMAGES,
            image_name="COCO_{split}2014_{image_id:0>12}.jpg",
        ),
        # Only `test`: images that nano was not trained on.
        DatasetSpec("easy_vqa", None, "exact_match", 4, source_split="test", bundled=True),
        DatasetSpec("small_print", None, "exact_match", 4, source_split="test", bundled=True),
    )
}


def dataset_spec(name: str, *, has_source: bool) -> DatasetSpec:
    """Returns the spec of a known dataset, or a default spec for any other name, which needs a source.

    The default spec has no prompt style, the metric `exact_match` and no source split, so all rows are used. Raises
    DatasetError for an unknown name without a source, and for a malformed name.
    """
    if name in DATASETS:
        return DATASETS[name]
    if not has_source:
        raise DatasetError(
            f"dataset `{name}` is unknown: choose one of {', '.join(DATASETS)}, "
            f"or name your own files as {name}=PATH (Parquet or JSONL with image, question, answers)."
        )
    if (
        not name
        or any(mark in name for mark in "/#=")
        or not name.isprintable()
        or name != name.strip()
        or len(name) > 64
    ):
        raise DatasetError(f"dataset name {name!r} must be printable, without `/`, `#` or `=`, at most 64 characters.")
    return DatasetSpec(name, None, "exact_match", 64, source_split=None)


def parse_dataset_option(value: str) -> tuple[str, str | None]:
    """Returns (name, source) of `--dataset NAME` or `--dataset NAME=PATH_OR_URL`; without a source it is None."""
    name, equals, source = value.partition("=")
    if equals and not source:
        raise DatasetError(f"--dataset {value}: a path or a URL must follow the `=`.")
    return name, source or None
