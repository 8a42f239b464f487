"""Cards: the `README.md` of a cache or of controllers, as the Hugging Face hub shows it.

A generated card ends with the digest of its text. A card that a user has changed no longer matches it and is never
overwritten; only its section of results, between two comments, is kept up to date.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .files.atomic import DISK, Disk, write_atomically
from .printable import printable

if TYPE_CHECKING:
    from huggingface_hub import CardData

CARD_NAME = "README.md"
REPO_ID = "OWNER/NAME"  # stands for the repository in snippets, until the card is published
MAX_CARD_BYTES = 1 << 20
RESULTS_BEGIN = "<!-- results, written by knobctl -->"
RESULTS_END = "<!-- end of results -->"
_LICENCE = "# license: (state the licence under which you share this; the datasets' and the model's licences apply too)"
_SIGNATURE = re.compile(r"\n<!-- written by knobctl, sha256 ([0-9a-f]{64}): a changed card is not overwritten -->\n?\Z")
_SPECIAL = re.compile(r"([\\`*{}\[\]<>|~&$@:]|(?<!\w)_|_(?!\w))")


def escaped(text: object, limit: int = 200) -> str:
    """Returns text from a dataset or a model as one line of plain Markdown, at most `limit` characters of it."""
    return _SPECIAL.sub(r"\\\1", printable(" ".join(str(text).split()), limit))


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Returns a table of escaped cells; floats with four digits, None as a dash."""
    lines = [columns, ["---"] * len(columns), *([_cell(value) for value in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def card_text(data: CardData, body: str) -> str:
    """Returns a signed card: metadata with a place for the licence, and the body."""
    licence = "" if data.get("license") else f"\n{_LICENCE}"
    return _signed(f"---\n{data.to_yaml()}{licence}\n---\n\n{body.strip()}\n")


def results_section(body: str) -> str:
    """Returns the section of results with the comments around it."""
    return f"{RESULTS_BEGIN}\n## Results\n\n{body.strip()}\n{RESULTS_END}"


def write_card(directory: Path, text: str, disk: Disk = DISK) -> bool:
    """Writes a card unless the user has changed the one there. Returns whether it was written. Raises OSError."""
    path = directory / CARD_NAME
    if path.exists() and not is_generated(path):
        return False
    write_atomically(path, text.encode(), disk)
    return True


def remove_generated_card(directory: Path) -> None:
    """Removes the card of an earlier run, unless the user has changed it."""
    path = directory / CARD_NAME
    if path.exists() and is_generated(path):
        path.unlink()


def is_generated(path: Path) -> bool:
    """Whether a card has the text that knobctl wrote."""
    text = read_card(path)
    found = None if text is None else _SIGNATURE.search(text)
    return found is not None and text is not None and found[1] == _digest(text[: found.start()])


def read_card(path: Path) -> str | None:
    """Returns the text of a card; None for one that is too large or is not text."""
    if path.stat().st_size > MAX_CARD_BYTES:
        return None
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None


def update_results(directory: Path, section: str, eval_results: Sequence[Any]) -> bool:
    """Replaces the section of results of a card that the user has changed, in its text and in its metadata.

    What the user wrote elsewhere remains. Returns False, and changes nothing, for a card without such a section.
    """
    from huggingface_hub import ModelCard

    path = directory / CARD_NAME
    text = read_card(path) if path.exists() else None
    if text is None:
        return False
    before, begin, rest = text.partition(RESULTS_BEGIN)
    _, end, after = rest.partition(RESULTS_END)
    if not (begin and end):
        return False
    card = ModelCard(before + section + after, ignore_metadata_errors=True)
    card.data["eval_results"] = list(eval_results)
    card.data["model_name"] = card.data.get("model_name") or "controllers"
    licence = "" if card.data.get("license") else f"\n{_LICENCE}"
    text = f"---\n{card.data.to_yaml()}{licence}\n---\n{card.text}"
    write_atomically(path, text.encode())
    return True


def published(text: str, repo_id: str) -> str:
    """Returns a card whose snippets name the repository."""
    found = _SIGNATURE.search(text)
    named = text.replace(REPO_ID, repo_id)
    return named if found is None else _signed(_SIGNATURE.sub("", named))


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else escaped(value)


def _signed(text: str) -> str:
    return f"{text}\n<!-- written by knobctl, sha256 {_digest(text)}: a changed card is not overwritten -->\n"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
