"""What a run says about its datasets: `--column` and `--source-split` about their files, `--prompt` about questions.

Needs no table library, so that the command line can check these options before it loads one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from ..errors import DatasetError

FIELDS = ("image", "question", "answers", "question_id", "image_id", "split")


def column_maps(options: Iterable[str], datasets: Collection[str]) -> dict[str, dict[str, str]]:
    """Returns for each dataset the columns that hold its fields, from options `[DATASET.]FIELD=COLUMN`.

    An option without a dataset applies to all of them; one with a dataset takes precedence.
    """
    general: dict[str, str] = {}
    own: dict[str, dict[str, str]] = {}
    for option in options:
        target, equals, column = option.partition("=")
        dataset, dot, field = target.rpartition(".")
        if not equals or not column or field not in FIELDS or bool(dot) != bool(dataset):
            raise DatasetError(
                f"--column {option}: must be FIELD=COLUMN or DATASET.FIELD=COLUMN, with one of the fields "
                f"{', '.join(FIELDS)}."
            )
        if dataset and dataset not in datasets:
            raise DatasetError(f"--column {option}: `{dataset}` is not a dataset of this run.")
        fields = own.setdefault(dataset, {}) if dataset else general
        if fields.setdefault(field, column) != column:
            raise DatasetError(f"--column {option}: `{field}` was given {fields[field]!r} before: name one column.")
    return {name: {**general, **own.get(name, {})} for name in datasets}


def source_splits(options: Iterable[str], datasets: Collection[str]) -> dict[str, str]:
    """Returns the source split requested for each dataset, from options `[DATASET=]SPLIT`; others are left out."""
    general: str | None = None
    own: dict[str, str] = {}
    for option in options:
        dataset, equals, split = option.rpartition("=")
        if not split or (equals and dataset not in datasets):
            raise DatasetError(
                f"--source-split {option}: must be SPLIT or DATASET=SPLIT, with a dataset of this run: "
                f"{', '.join(datasets)}."
            )
        if (own.setdefault(dataset, split) if equals else (general := general or split)) != split:
            raise DatasetError(f"--source-split {option}: another split was given before: name one.")
    return own if general is None else {name: own.get(name, general) for name in datasets}


def instructions(options: Iterable[str], datasets: Collection[str]) -> dict[str, str]:
    """Returns the instruction requested for each dataset, from options `[DATASET=]TEXT`; others are left out.

    A text may contain `=`: what precedes the first one counts only if it is a dataset of the run. An empty text means
    no instruction.
    """
    general: str | None = None
    own: dict[str, str] = {}
    for option in options:
        dataset, equals, text = option.partition("=")
        if equals and dataset in datasets:
            if own.setdefault(dataset, text) != text:
                raise DatasetError(f"--prompt {option}: `{dataset}` was given {own[dataset]!r} before: give one text.")
        elif general not in (None, option):
            raise DatasetError(f"--prompt {option}: another text was given before: give one, or name datasets.")
        else:
            general = option
    return own if general is None else {name: own.get(name, general) for name in datasets}
