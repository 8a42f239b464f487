"""`--prompt`: an instruction for all datasets of a run or for one of them."""

from __future__ import annotations

import pytest

from knobctl.data.datasets.sample_set import load_samples
from knobctl.data.datasets.source_options import instructions
from knobctl.data.errors import DatasetError

NAMES = ("easy_vqa", "small_print")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), {}),
        (("Be brief.",), {"easy_vqa": "Be brief.", "small_print": "Be brief."}),
        (("easy_vqa=One word.",), {"easy_vqa": "One word."}),
        (("small_print=", "Be brief."), {"easy_vqa": "Be brief.", "small_print": ""}),
        (("If x=1, say so.",), {"easy_vqa": "If x=1, say so.", "small_print": "If x=1, say so."}),
    ],
)
def test_an_instruction_is_for_all_datasets_or_one(options, expected):
    assert instructions(options, NAMES) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [(("One.", "Two."), "another text was given before"), (("easy_vqa=One.", "easy_vqa=Two."), "give one text")],
)
def test_two_instructions_for_one_dataset_are_refused(options, message):
    with pytest.raises(DatasetError, match=message):
        instructions(options, NAMES)


def test_an_instruction_takes_the_place_of_the_datasets_style():
    seen = []
    chosen = load_samples("easy_vqa", limit=2, style="Be brief.", check_input=seen.append)
    assert {row.style for row in seen} == {"Be brief."} == {chosen.style}
    assert load_samples("easy_vqa", limit=1, style="").style is None
    assert load_samples("easy_vqa", limit=1).to_dict()["style"] is None
