"""The pages of the documentation and their fenced blocks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
GENERATED = ROOT / "docs" / "reference" / "cli.md"  # from the commands, whose examples a test of its own parses
PAGES = sorted({ROOT / "README.md", *(ROOT / "docs").rglob("*.md")} - {GENERATED})
NEEDS = ("gpu", "hub", "data", "cluster", "server")  # why a block may not be run by a test

_BLOCK = re.compile(r"^(?:<!-- needs: (\w+) -->\n)?```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_GIVEN = re.compile(r"<!-- given: (.+) -->")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    needs: str | None  # one of `NEEDS`, for a block that a test cannot run
    text: str

    @property
    def commands(self) -> list[str]:
        """The lines of a shell block, continued ones joined, without comments."""
        assert self.language == "sh"
        lines = [re.sub(r"(^|\s)#.*", "", line).strip() for line in self.text.replace("\\\n", " ").splitlines()]
        return [line for line in lines if line]


def blocks(page: Path) -> list[Block]:
    """Returns the fenced blocks of a page, in order."""
    text = page.read_text()
    return [
        Block(page, text.count("\n", 0, found.start(2)) + 1, found[2], found[1], found[3])
        for found in _BLOCK.finditer(text)
    ]


def given(page: Path) -> list[str]:
    """Returns what a page says exists before its first block."""
    found = _GIVEN.search(page.read_text())
    return [] if found is None or found[1] == "nothing" else found[1].split(", ")
