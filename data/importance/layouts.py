"""The layouts of importance scores in files of other programs, as parsed JSON.

A score is the accuracy lost when a block is left out: larger is more important; negative if accuracy increased.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ImportanceError
from ..printable import printable

REVERSED_METHOD = "median_rank"  # gives the most important block the lowest score
_PRECEDENCE = ("merged_scores", "train_scores", "importance_scores")
_BLOCK = re.compile(r"0|[1-9][0-9]{0,5}")
_ORDER_TOLERANCE = 1e-9


@dataclass(frozen=True)
class LayoutScores:
    """Unchecked scores from a file: block name to any value."""

    scores: Mapping[str, Any]
    place: str  # the key of the scores, "" for the top level
    method: str | None  # how they were merged, if stated


def scores_of_layout(record: Any, where: str, method: str | None) -> LayoutScores:
    """Finds the scores: at `merged_scores`, `train_scores`, `importance_scores`, the top level or one `<x>_scores`.

    method: which scores to use from a file with several methods; for other files, it must be the method they state.
    Raises ImportanceError, naming the keys or methods of the file.
    """
    if not isinstance(record, dict) or not record:
        raise ImportanceError(f"{where} must contain an object with a score per block")
    place, scores = _place(record, where)
    named = record.get("method") if isinstance(record.get("method"), str) else None
    if not isinstance(scores, dict):
        raise ImportanceError(f"{where}: {place or 'the file'} must be an object with a score per block")
    if scores and all(isinstance(value, dict) for value in scores.values()):
        methods = sorted(scores)
        shown = ", ".join(printable(name) for name in methods)
        if method is None:
            raise ImportanceError(f"{where}: {place} has scores of several methods; choose one with --method: {shown}")
        if method not in scores:
            raise ImportanceError(f"{where}: {place} has no method {method!r}; it has {shown}")
        return LayoutScores(scores[method], f"{place}.{method}", method)
    if method is not None and method != named:
        raise ImportanceError(
            f"{where} has scores of {'one unnamed method' if named is None else f'method {named!r}'}, "
            f"not of {method!r}: omit --method, or give the file of that method"
        )
    return LayoutScores(scores, place, named if place == "merged_scores" else None)


def _place(record: Mapping[str, Any], where: str) -> tuple[str, Any]:
    for key in _PRECEDENCE:
        if key in record:
            return key, record[key]
    if all(_BLOCK.fullmatch(key) for key in record):
        return "", record
    others = sorted(key for key in record if key.endswith("_scores") and isinstance(record[key], dict))
    if len(others) == 1:
        return others[0], record[others[0]]
    found = ", ".join(printable(key, 30) for key in list(record)[:8])
    if others:
        raise ImportanceError(
            f"{where} has several kinds of scores and none that takes precedence: {', '.join(others)}"
        )
    raise ImportanceError(f"{where} is not a known layout of importance scores: it has the keys {found}")


def checked_scores(scores: Mapping[str, Any], n_blocks: int, where: str) -> tuple[float | None, ...]:
    """Returns a score per block; None for the first and last block, if both are absent.

    Raises ImportanceError for any other missing block, a block out of range, and a value that is not a finite number.
    """
    values: dict[int, float] = {}
    for key, value in scores.items():
        if not _BLOCK.fullmatch(key):
            raise ImportanceError(f"{where}: {printable(key)!r} is not a block number")
        block = int(key)
        if block >= n_blocks:
            raise ImportanceError(f"{where} scores block {block}, but the last of {n_blocks} blocks is {n_blocks - 1}")
        if value is None:
            raise ImportanceError(f"{where}: block {block} was not measured (null): measure it, or give another file")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ImportanceError(f"{where}: the score of block {block} must be a number, not {printable(value, 30)}")
        if not math.isfinite(value):
            raise ImportanceError(f"{where}: the score of block {block} is {value}, not a finite number")
        values[block] = float(value)
    missing = [block for block in range(n_blocks) if block not in values]
    if missing and missing != [0, n_blocks - 1]:
        raise ImportanceError(
            f"{where} lacks the score of block {', '.join(map(str, missing))}; a file may leave out only the first and "
            f"the last block together (scoring 1 to {n_blocks - 2}), which are then always kept"
        )
    return tuple(values.get(block) for block in range(n_blocks))


def refuse_contradicting_ranking(record: Mapping[str, Any], scores: Sequence[float | None], where: str) -> None:
    """Raises ImportanceError if `ranking`, least important first, contradicts the order of the scores."""
    ranking = record.get("ranking")
    if not isinstance(ranking, list):
        return
    last = -math.inf
    for entry in ranking:
        block = entry[0] if isinstance(entry, list) and entry else None
        if isinstance(block, str) and _BLOCK.fullmatch(block):
            block = int(block)
        if type(block) is not int or not 0 <= block < len(scores):
            raise ImportanceError(f"{where}: ranking must list [block, score] pairs, not {printable(entry, 40)}")
        score = scores[block]
        if score is None:
            continue
        if score < last - _ORDER_TOLERANCE:
            raise ImportanceError(
                f"{where}: ranking, from the least to the most important block, contradicts the scores at block "
                f"{block}: the file was edited, or low scores mean important (then give --reverse)"
            )
        last = score


def single_block(record: Any, where: str) -> tuple[int, float, tuple[str, str]]:
    """Returns (block, score, (dataset, split)) of a `sensitivity_block_<i>.json`."""
    if not isinstance(record, dict):
        raise ImportanceError(f"{where} must contain an object")
    block, score = record.get("block_idx"), record.get("importance_score")
    if type(block) is not int or block < 0:
        raise ImportanceError(f"{where}: block_idx must be a block number, not {printable(block, 30)}")
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        raise ImportanceError(
            f"{where}: importance_score of block {block} must be a number, not {printable(score, 30)}"
        )
    return block, float(score), (printable(record.get("dataset_name")), printable(record.get("split")))


def is_single_block(record: Any) -> bool:
    return isinstance(record, dict) and "block_idx" in record and "importance_score" in record
