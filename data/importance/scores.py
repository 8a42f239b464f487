"""Reads and writes importance scores: knobctl's own file, and the layouts of other programs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import ImportanceError
from ..files.atomic import write_atomically
from ..files.bounded_json import dump_json, read_json
from ..files.json_fields import JsonFields
from ..plans import ImportanceScores
from .layouts import (
    REVERSED_METHOD,
    checked_scores,
    is_single_block,
    refuse_contradicting_ranking,
    scores_of_layout,
    single_block,
)

IMPORTANCE_FORMAT = "knobctl-importance"
IMPORTANCE_VERSION = 1
DEFAULT_BLOCKS = 16  # MolmoE
_MAX_BYTES = 16 << 20
_MAX_FILES = 1_000
_SINGLE_NAME = re.compile(r"sensitivity_block_(\d{1,6})\.json", re.ASCII)


def import_importance(
    files: Sequence[Path], *, method: str | None = None, reverse: bool = False, n_blocks: int = DEFAULT_BLOCKS
) -> ImportanceScores:
    """Reads one score file, knobctl's own or of any known layout, or the `sensitivity_block_<i>.json` files of one run.

    Args:
        method: which scores to use from a file with several methods.
        reverse: negate the scores, because low values mean important in this file (`median_rank`).
        n_blocks: blocks of the model, including those that the file leaves out.

    Raises:
        ImportanceError: the scores are invalid or incomplete, with the reason.
    """
    paths = [Path(file) for file in files]
    if not paths:
        raise ImportanceError("no score file was given")
    if len(paths) > _MAX_FILES:
        raise ImportanceError(f"{len(paths):,} files are more than any model has blocks")
    records = [_read(path) for path in paths]
    if len(paths) == 1 and _is_own(records[0]):
        return _own_scores(paths[0], records[0], method, reverse, n_blocks)
    if all(is_single_block(record) for record in records):
        return _from_single_blocks(paths, records, method, reverse, n_blocks)
    if len(paths) > 1:
        odd = next(path for path, record in zip(paths, records, strict=True) if not is_single_block(record))
        raise ImportanceError(
            f"{odd.name} is not a `sensitivity_block_<i>.json`: give one score file, or all "
            "single-block files of one run"
        )
    path, record = paths[0], records[0]
    found = scores_of_layout(record, str(path), method)
    _refuse_reversed(path, record, found.method, reverse)
    scores = checked_scores(found.scores, n_blocks, f"{path}{f': {found.place}' if found.place else ''}")
    if not reverse and found.place == "merged_scores":
        refuse_contradicting_ranking(record, scores, str(path))
    source = path.name + (f": {found.place}" if found.place else "")
    if found.method is not None and not found.place.endswith(f".{found.method}"):
        source += f" ({found.method})"
    return ImportanceScores(_signed(scores, reverse), source=source + (", reversed" if reverse else ""))


def load_importance(
    path: Path, *, method: str | None = None, reverse: bool = False, n_blocks: int | None = None
) -> ImportanceScores:
    """Reads the file of `--importance FILE`: knobctl's own, or any layout of other programs.

    n_blocks: blocks of the model; None: as in knobctl's own file, and 16 for the files of other programs.
    method, reverse: as in `import_importance`. Raises ImportanceError with the reason.
    """
    record = _read(Path(path))
    if _is_own(record):
        return _own_scores(Path(path), record, method, reverse, n_blocks)
    return import_importance([path], method=method, reverse=reverse, n_blocks=n_blocks or DEFAULT_BLOCKS)


def _is_own(record: Any) -> bool:
    return isinstance(record, dict) and record.get("format") == IMPORTANCE_FORMAT


def _own_scores(
    path: Path, record: dict[str, Any], method: str | None, reverse: bool, n_blocks: int | None
) -> ImportanceScores:
    if record.get("version") != IMPORTANCE_VERSION:
        raise ImportanceError(
            f"{path} has version {record.get('version')!r}; this knobctl reads version {IMPORTANCE_VERSION}"
        )
    if method is not None or reverse:
        raise ImportanceError(f"{path} is knobctl's own file: --method and --reverse are for files of other programs")
    scores = ImportanceScores.from_fields(JsonFields(record, str(path), ImportanceError))
    if n_blocks is not None and scores.n_blocks != n_blocks:
        raise ImportanceError(f"{path} scores {scores.n_blocks} blocks, but the model has {n_blocks}")
    return scores


def save_importance(scores: ImportanceScores, path: Path) -> None:
    """Writes knobctl's own importance file; `load_importance` returns equal scores. Raises ImportanceError."""
    path = Path(path)
    record = {
        "format": IMPORTANCE_FORMAT,
        "version": IMPORTANCE_VERSION,
        "n_blocks": scores.n_blocks,
        **scores.to_dict(),
    }
    try:
        write_atomically(path, dump_json(record))
    except OSError as cause:
        raise ImportanceError(f"{path} cannot be written ({cause.strerror or cause}): choose another path") from cause


def _read(path: Path) -> Any:
    return read_json(path, error=ImportanceError, max_bytes=_MAX_BYTES)


def _from_single_blocks(
    paths: Sequence[Path], records: Sequence[Any], method: str | None, reverse: bool, n_blocks: int
) -> ImportanceScores:
    if method is not None:
        raise ImportanceError(f"single-block files have no method {method!r}: omit --method")
    scores: dict[str, float] = {}
    origins = set()
    for path, record in zip(paths, records, strict=True):
        block, score, origin = single_block(record, str(path))
        match = _SINGLE_NAME.fullmatch(path.name)
        if match is not None and int(match[1]) != block:
            raise ImportanceError(f"{path} contains block {block}: name and content disagree")
        if str(block) in scores:
            raise ImportanceError(f"{path}: another of the files also scores block {block}")
        scores[str(block)] = score
        origins.add(origin)
    if len(origins) > 1:
        shown = " and ".join(f"{dataset} ({split})" for dataset, split in sorted(origins))
        raise ImportanceError(f"the files are of different runs, whose scores are not comparable: {shown}")
    checked = checked_scores(scores, n_blocks, f"{paths[0].parent} ({len(paths)} single-block files)")
    source = f"{len(paths)} single-block files of {' '.join(next(iter(origins)))}"
    return ImportanceScores(_signed(checked, reverse), source=source + (", reversed" if reverse else ""))


def _refuse_reversed(path: Path, record: Any, method: str | None, reverse: bool) -> None:
    """Raises ImportanceError for scores of a reversed method; for `X_simple.json`, `X.json` states the method."""
    origin = path
    if method is None and path.stem.endswith("_simple"):
        origin = path.with_name(path.stem.removesuffix("_simple") + ".json")
        if origin.is_file():
            try:
                full = _read(origin)
            except ImportanceError:
                return  # damaged or foreign: no information on this file
            if isinstance(full, dict) and full.get("merged_scores") == record and isinstance(full.get("method"), str):
                method = full["method"]
    if method == REVERSED_METHOD and not reverse:
        raise ImportanceError(
            f"{origin} was merged with {REVERSED_METHOD}, whose formula gives the most important block the lowest "
            "score: give --reverse to negate the scores, or merge with another method"
        )


def _signed(scores: Sequence[float | None], reverse: bool) -> tuple[float | None, ...]:
    return tuple(None if score is None else -score for score in scores) if reverse else tuple(scores)
