"""Text normalisation shared by the VQA metrics, with the steps and the quirks of the official evaluation.

Sources: GT-Vision-Lab/VQA (vqaEval.py, commit a013f00); facebookresearch/mmf (m4c_evaluators.py) and lmms-eval (commit
75571cf) for `tokenize` and the second comma rule. The quirks are kept so that scores compare with published ones.
"""

import re

from .contractions import CONTRACTIONS

MARKS = ';/[]"{}()=+\\_-><@`,?!'  # no colon, no apostrophe, no full stop
ARTICLES = frozenset({"a", "an", "the"})
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBER_WORDS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBERS)}

# Two patterns for a comma between digits; only the second matches in `1,,000`.
OFFICIAL_COMMA = re.compile(r"\d,\d")
LMMS_COMMA = re.compile(r"(?<=\d),+(?=\d)")

_ANY_MARK = re.compile(f"[{re.escape(MARKS)}]")
# The official rule also excludes a digit before the stop, but its look-behind is misspelt and never fails.
_FULL_STOP = re.compile(r"\.(?!\d)")
_FULL_STOPS_REMOVED = 32  # the official call passes re.UNICODE, which is 32, as `count`


def clean(text: str) -> str:
    """Returns the text on one line: newlines and tabs become spaces, the ends are stripped."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def tokenize(text: str) -> str:
    """Returns lower-case text without commas and question marks, `'s` a word of its own (only in EvalAI's variant)."""
    return text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()


def strip_punctuation(text: str, comma: re.Pattern[str] = OFFICIAL_COMMA) -> str:
    """Returns the text with each mark deleted if it is next to a space anywhere in it, else replaced by a space.

    A comma between digits anywhere deletes all marks. Both conditions are tested on the original text.
    """
    result = text
    if _ANY_MARK.search(text):
        between_digits = comma.search(text) is not None
        for mark in MARKS:
            deleted = between_digits or f"{mark} " in text or f" {mark}" in text
            result = result.replace(mark, "" if deleted else " ")
    return _FULL_STOP.sub("", result, count=_FULL_STOPS_REMOVED)


def map_words(text: str) -> str:
    """Returns lower-case words joined by spaces: numbers as digits, articles dropped, apostrophes restored."""
    words = (NUMBER_WORDS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)
