"""The text normaliser that all VQA metrics share, in the steps and with the quirks of the official evaluation.

Source: GT-Vision-Lab/VQA (vqaEval.py, commit a013f00); facebookresearch/mmf (m4c_evaluators.py) and lmms-eval (commit
75571cf) for `tokenize` and the second comma rule. Figures are compared with published ones, so the quirks stay.
"""

import re

from .contractions import CONTRACTIONS

MARKS = ';/[]"{}()=+\\_-><@`,?!'  # no colon, no apostrophe, no full stop
ARTICLES = frozenset({"a", "an", "the"})
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBER_WORDS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBERS)}

# Two spellings of "a comma between digits": only the second finds one in `1,,000`.
OFFICIAL_COMMA = re.compile(r"\d,\d")
LMMS_COMMA = re.compile(r"(?<=\d),+(?=\d)")

_ANY_MARK = re.compile(f"[{re.escape(MARKS)}]")
# The official rule guards against a digit before the stop too, but its look-behind is misspelt and never refuses.
_FULL_STOP = re.compile(r"\.(?!\d)")
_FULL_STOPS_REMOVED = 32  # the official call passes re.UNICODE, which is 32, where `count` belongs


def clean(text: str) -> str:
    """Returns the text on one line: newline and tab become a space, the ends are stripped."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def tokenize(text: str) -> str:
    """Returns lower-case text without commas and question marks and with `'s` set apart (EvalAI's variant only)."""
    return text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()


def strip_punctuation(text: str, comma: re.Pattern[str] = OFFICIAL_COMMA) -> str:
    """Returns the text with each mark deleted where it touches a space anywhere, else replaced by a space.

    A comma between digits anywhere deletes all marks. What decides is the text as it came in, not as changed so far.
    """
    result = text
    if _ANY_MARK.search(text):
        between_digits = comma.search(text) is not None
        for mark in MARKS:
            deleted = between_digits or f"{mark} " in text or f" {mark}" in text
            result = result.replace(mark, "" if deleted else " ")
    return _FULL_STOP.sub("", result, count=_FULL_STOPS_REMOVED)


def map_words(text: str) -> str:
    """Returns lower-case words: numbers as digits, articles dropped, apostrophes put back, joined by one space."""
    words = (NUMBER_WORDS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)
