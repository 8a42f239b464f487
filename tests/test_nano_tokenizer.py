"""nano's tokenizer, built and as bundled."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest

from knobctl.precompute.models.molmoe.prompt import PromptTokenizer
from knobctl.tools.nano.questions import every_template
from knobctl.tools.nano.tokenizer import build_tokenizer

SHIPPED = Path(str(files("knobctl"))) / "data/bundled/nano"


def test_known_text_survives_encoding_and_decoding():
    tokenizer = PromptTokenizer(build_tokenizer(["what is red plus blue on the sign?"]))
    text = "what is red plus blue on the sign? 47"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_digits_are_single_tokens():
    tokenizer = PromptTokenizer(build_tokenizer([]))
    assert len(tokenizer.encode(" 4")) == 1
    assert len(tokenizer.encode(" 47")) == 2
    assert tokenizer.decode(tokenizer.encode(" 47")) == "47"


def test_unknown_words_become_unk():
    raw = build_tokenizer(["what is"])
    tokenizer = PromptTokenizer(raw)
    unk = raw.token_to_id("<unk>")
    assert tokenizer.encode("what zork") == [raw.token_to_id("what"), unk]


@pytest.mark.parametrize("question", ["is there not a teal circle in the image?", *every_template()[::40]])
def test_the_bundled_tokenizer_covers_both_datasets(question):
    tokenizer = PromptTokenizer.from_directory(SHIPPED)
    assert tokenizer.decode(tokenizer.encode(question)) == question
    frame = tokenizer.encode_prompt(question)
    assert tokenizer.decode(frame) == f"user: {question} assistant:"
