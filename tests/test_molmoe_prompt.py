"""Prompts have the released token ids; special tokens come from the checkpoint."""

from __future__ import annotations

import json
import shutil

import pytest

from knobctl.data.datasets.registry import DATASETS
from knobctl.data.errors import CheckpointError
from knobctl.precompute.models.molmoe.prompt import PromptTokenizer, SpecialTokens
from knobctl.tests.support.molmoe_fixtures import FIXTURES, TINY

CASES = json.loads((FIXTURES / "tokenizer_cases.json").read_text())["cases"]


@pytest.fixture(scope="module")
def tokenizer() -> PromptTokenizer:
    return PromptTokenizer.from_directory(FIXTURES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: repr(case["user_text"][:20]))
def test_prompts_are_encoded_as_by_the_released_processor(tokenizer, case):
    assert tokenizer.encode_prompt(case["user_text"]) == case["ids"]
    assert tokenizer.encode(case["formatted"]) == case["ids"]
    assert tokenizer.decode(case["ids"]) == case["decoded"].strip()


def test_special_tokens_come_from_either_file():
    assert SpecialTokens.from_directory(FIXTURES) == SpecialTokens(50279, 50279, 1, 50280, 50281, 50282, 50283)
    assert SpecialTokens.from_directory(TINY) == SpecialTokens(119, 119, 1, 120, 121, 122, 123)


@pytest.mark.parametrize(
    ("dataset", "style"),
    [("text_vqa", "text_vqa"), ("coco_2014_vqa", "vqa2"), ("okvqa", "okvqa"), ("easy_vqa", None)],
)
def test_a_datasets_style_is_its_prefix(dataset, style):
    assert DATASETS[dataset].style == style


def test_the_style_precedes_the_question(tokenizer):
    question = "What is on the table?"
    plain, styled = (
        tokenizer.encode_prompt(question),
        tokenizer.encode_prompt(question, DATASETS["coco_2014_vqa"].style),
    )
    assert styled == tokenizer.encode(" User: vqa2: What is on the table? Assistant:")
    assert styled[:2] == plain[:2]
    assert styled[6:] == plain[2:]


def test_answers_lose_outer_spaces_and_special_tokens(tokenizer):
    special = tokenizer.special
    ids = [*tokenizer.encode(" yes\n"), special.end, special.pad]
    assert tokenizer.decode(ids) == "yes"
    assert tokenizer.decode(tokenizer.encode(" A b  c .")) == "A b  c ."  # no clean-up of inner spaces
    assert tokenizer.decode([special.end]) == ""


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"model": 3}', "\x00\xff"])
def test_a_file_that_is_not_a_tokenizer_is_refused(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match="is not a tokenizer"):
        PromptTokenizer.from_directory(tmp_path)


def test_a_tokenizer_without_an_image_token_names_it(tmp_path):
    content = json.loads((FIXTURES / "tokenizer.json").read_text())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != "<im_col>"]
    del content["model"]["vocab"]["<im_col>"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="no token <im_col>"):
        PromptTokenizer.from_directory(tmp_path)


def test_a_directory_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"tokenizer\.json does not exist"):
        PromptTokenizer.from_directory(tmp_path)
    shutil.copy(TINY / "token_ids.json", tmp_path)
    (tmp_path / "token_ids.json").write_text('{"bos": "119"}')
    with pytest.raises(CheckpointError, match="'bos'"):
        SpecialTokens.from_directory(tmp_path)
