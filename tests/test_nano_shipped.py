"""The bundled files: the datasets and nano's weights."""

from __future__ import annotations

import io
from importlib.resources import files
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from knobctl.precompute.models.molmoe.checkpoint import load_molmoe
from knobctl.precompute.models.molmoe.preprocess import preprocess_image
from knobctl.precompute.models.molmoe.prompt import PromptTokenizer
from knobctl.tests.support.reference_decoding import ModelInputs, generate
from knobctl.tools.nano.bundle import SCHEMA
from knobctl.tools.nano.small_print import SMALL_PRINT_SEED, small_print_rows

BUNDLED = Path(str(files("knobctl"))) / "data/bundled"
PATHS = {
    "easy_vqa train": (BUNDLED / "easy_vqa/train.parquet", 38_575, 4_000),
    "easy_vqa test": (BUNDLED / "easy_vqa/test.parquet", 9_673, 1_000),
    "small_print test": (BUNDLED / "small_print/test.parquet", 7_200, 2_400),
}


@pytest.mark.parametrize("name", PATHS)
def test_files_have_the_rows_and_images_that_the_readme_states(name):
    path, rows, images = PATHS[name]
    table = pq.read_table(path)
    assert table.schema.equals(SCHEMA)
    assert table.num_rows == rows
    assert len(set(table["image_id"].to_pylist())) == images
    assert set(table["split"].to_pylist()) == {name.split()[1]}
    assert len(set(table["question_id"].to_pylist())) == rows


def test_training_and_held_out_images_are_disjoint():
    train, test = (
        {row["bytes"] for row in pq.read_table(PATHS[f"easy_vqa {split}"][0], columns=["image"])["image"].to_pylist()}
        for split in ("train", "test")
    )
    assert not train & test


def test_the_generator_reproduces_small_print():
    shipped = pq.read_table(PATHS["small_print test"][0]).slice(0, 9).to_pylist()
    drawn = list(small_print_rows(SMALL_PRINT_SEED, 3))
    for old, new in zip(shipped, drawn, strict=True):
        assert {key: old[key] for key in ("question", "answers", "image_id")} == {
            key: new[key] for key in ("question", "answers", "image_id")
        }
        pixels = [np.asarray(Image.open(io.BytesIO(row["image"]["bytes"]))) for row in (old, new)]
        assert np.array_equal(*pixels)


def test_the_weights_of_nano_take_less_than_25_mb():
    path = BUNDLED / "nano/model.safetensors"
    assert path.stat().st_size < 25e6


@pytest.mark.parametrize(("dataset", "at_least"), [("easy_vqa", 0.8), ("small_print", 0.6)])
def test_nano_answers_held_out_questions(dataset, at_least):
    model = load_molmoe(BUNDLED / "nano", dtype=torch.float32)
    tokenizer = PromptTokenizer.from_directory(BUNDLED / "nano")
    special = tokenizer.special
    rows = pq.read_table(BUNDLED / dataset / "test.parquet").to_pylist()[::211][:24]
    right = 0
    for row in rows:
        rgb = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB"))
        image = preprocess_image(rgb, (3, 3), model.config, special)
        prompt = torch.tensor([*tokenizer.encode_prompt(row["question"])])
        ids = torch.cat([torch.tensor([special.begin]), image.token_ids, prompt])
        inputs = ModelInputs(ids[None], image.crops[None], image.masks[None], image.image_input_idx[None])
        answer = generate(model, inputs, (8,) * 16, max_new_tokens=5, end_id=special.end, pad_id=special.pad)
        right += tokenizer.decode(answer[0].tolist()) in row["answers"]
    assert right / len(rows) >= at_least
