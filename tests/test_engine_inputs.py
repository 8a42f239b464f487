"""Rows that only the model can reject are reported with path and row before the run and in a dry run, or skipped."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from knobctl.data.errors import DatasetError
from knobctl.data.samples import ModelInput, Sample
from knobctl.precompute.execution.knob_model import Task, check_input
from knobctl.precompute.models.loading import load_model
from knobctl.precompute.models.molmoe.preprocess import image_length, image_tokens
from knobctl.precompute.run.config import PrecomputeConfig
from knobctl.precompute.run.forecast import forecast
from knobctl.precompute.run.inputs import load_inputs
from knobctl.tests.support.dataset_files import png, write_json_lines
from knobctl.tests.support.tiny_model import SMALL_SPACE, tiny_knobs, write_tiny_model

LIMIT = 512  # longest sequence of the tiny model


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory) -> Path:
    """A tiny model whose tokenizer drops zero-width spaces and rejects words outside its vocabulary."""
    directory = write_tiny_model(tmp_path_factory.mktemp("models") / "tiny", 6, native_top_k=4)
    path = directory / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    invisible = {"type": "Replace", "pattern": {"String": "\u200b"}, "content": ""}
    tokenizer["normalizer"] = {"type": "Sequence", "normalizers": [tokenizer["normalizer"], invisible]}
    tokenizer["model"]["unk_token"] = "<absent>"
    tokenizer["model"]["vocab"]["outside"] = 500  # a token without an embedding
    path.write_text(json.dumps(tokenizer))
    return directory


def config_of(model_dir: Path, folder: Path, *bad: str, **changes: object) -> PrecomputeConfig:
    """A run on eight usable rows, with the questions in `bad` inserted after the fourth."""
    questions = ["what is the color?"] * 4 + list(bad) + ["is there a circle?"] * 4
    (folder / "a.png").write_bytes(png(0))
    entries = [
        {"image": "a.png", "question": text, "answers": ["red"], "question_id": row}
        for row, text in enumerate(questions)
    ]
    source = write_json_lines(folder / "own.jsonl", entries)
    return PrecomputeConfig(
        model=str(model_dir),
        datasets=(f"own={source}",),
        out=folder / "cache",
        device="cpu",
        space=SMALL_SPACE,
        max_new_tokens={"own": 3},
        **changes,
    )


@pytest.mark.parametrize("tiling", [(1, 1), (1, 3), (2, 2), (4, 1)])
def test_image_length_equals_the_number_of_image_tokens(model_dir, tiling):
    model = load_model(str(model_dir), device="cpu").model
    token_ids, _ = image_tokens(tiling, model.molmoe.config, model.tokenizer.special)
    assert image_length(tiling, model.molmoe.config) == len(token_ids)


@pytest.mark.parametrize("size", [(8, 6), (6, 60), (60, 6)])
def test_the_check_rejects_exactly_the_rows_that_the_run_would_reject(model_dir, size):
    """The longest question that fits in every tier is accepted; one more word and it is rejected."""
    knobs = tiny_knobs(model_dir, space=SMALL_SPACE)
    knobs.tasks = {"own": Task("exact_match", 3, "user")}
    rgb = np.zeros((*size, 3), dtype=np.uint8)

    def lengths(words: int) -> list[int]:
        sample = Sample("own/0", "own", "train", " ".join(["red"] * words), ("red",), "0", None)
        return [knobs.prepare(sample, rgb, knobs.view(rgb, tier)).length for tier in SMALL_SPACE.tiers]

    def is_accepted(words: int) -> bool:
        row = ModelInput(" ".join(["red"] * words), "user", 3, *size)
        try:
            check_input(knobs.model, SMALL_SPACE, row)
        except DatasetError:
            return False
        return True

    longest = max(words for words in range(300, LIMIT) if is_accepted(words))
    assert max(lengths(longest)) + 3 == LIMIT
    with pytest.raises(DatasetError, match="own/0: the prompt has"):
        lengths(longest + 1)


BAD = [
    pytest.param(" ".join(["red"] * 475), "the prompt has", id="too-long-in-the-largest-tier"),
    pytest.param(" ".join(["red"] * 600), "the prompt has", id="too-long-in-any-tier"),
    pytest.param("\u200b", "has no token", id="empty-once-encoded"),
    pytest.param("is there a zebra?", "cannot encode", id="not-in-the-vocabulary"),
    pytest.param("outside", "token 500", id="without-an-embedding"),
]


@pytest.mark.parametrize(("question", "reason"), BAD)
def test_a_row_that_the_model_cannot_run_is_reported_before_the_run(model_dir, tmp_path, question, reason):
    config = config_of(model_dir, tmp_path, question)
    for find in (load_inputs, forecast):
        with pytest.raises(DatasetError, match=rf"own\.jsonl, line 5: .*{reason}.*--skip-bad"):
            find(config)
    assert not config.out.exists()


def test_skip_bad_skips_counts_and_replaces_unusable_rows(model_dir, tmp_path):
    bad = [parameters.values[0] for parameters in BAD]
    good = [f"own/{row}" for row in (0, 1, 2, 3, 9, 10, 11, 12)]
    (every,) = load_inputs(config_of(model_dir, tmp_path, *bad, skip_bad=True)).sets
    assert sorted(sample.sample_id for sample in every.samples) == sorted(good)
    assert sorted(row.where.rpartition(" ")[2] for row in every.skipped) == ["5", "6", "7", "8", "9"]
    (drawn,) = load_inputs(config_of(model_dir, tmp_path, *bad, skip_bad=True, samples=7)).sets
    assert len(drawn.samples) == 7


def test_a_token_limit_that_leaves_no_room_for_a_prompt_is_reported(model_dir, tmp_path):
    config = config_of(model_dir, tmp_path)
    config.max_new_tokens["own"] = LIMIT
    with pytest.raises(DatasetError, match=r"the answer up to 512, and the model takes 512: .*--max-new-tokens"):
        load_inputs(config)
