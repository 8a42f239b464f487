"""docs/development/architecture.md names files and functions that exist, and shows every package."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "development" / "architecture.md").read_text()
MAX_FUNCTIONS = 35  # that a sample passes


def named_functions() -> list[tuple[str, str]]:
    """The `file: function` entries of the page."""
    return re.findall(r"`([\w/]+\.py): ([\w.]+)`", PAGE)


def definitions(path: Path) -> set[str]:
    """Functions of a file, methods as `Class.method`."""
    tree = ast.parse(path.read_text())
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = {node.name for node in tree.body if isinstance(node, functions)}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{one.name}" for one in node.body if isinstance(one, functions)}
    return found


def tree_entries() -> Iterator[Path]:
    """Paths of the annotated tree."""
    block = PAGE.partition("## The tree\n")[2].partition("\n## ")[0]
    folders: list[str] = []
    for line in block.splitlines():
        if match := re.match(r"    ( *)([\w.]+/?)  +\S", line):
            depth = len(match[1]) // 2
            folders[depth:] = [match[2].rstrip("/")]
            yield Path(*folders)


def test_every_named_function_is_defined_in_its_file():
    wrong = []
    folders = [folder for folder in ROOT.iterdir() if folder.is_dir() and folder.name not in ("tests", "build", "runs")]
    sources = [*ROOT.glob("*.py"), *(p for folder in folders if folder.name[0] != "." for p in folder.rglob("*.py"))]
    known = {path: definitions(path) for path in sources}
    for file, function in named_functions():
        if function not in known.get(ROOT / file, set()):
            others = [str(path.relative_to(ROOT)) for path, names in known.items() if function in names]
            wrong.append(f"{file}: {function} (defined in: {', '.join(others) or 'nowhere'})")
    assert len(named_functions()) > 50
    assert wrong == []


def test_the_tree_shows_what_exists_and_every_package():
    entries = set(tree_entries())
    assert len(entries) > 50
    assert [str(path) for path in sorted(entries) if not (ROOT / path).exists()] == []
    packages = {
        path.parent.relative_to(ROOT)
        for folder in ("data", "precompute", "controllers", "replay", "serving", "commands")
        for path in (ROOT / folder).rglob("__init__.py")
    }
    assert packages - entries == set()


def test_a_sample_passes_as_many_functions_as_the_page_says():
    section = PAGE.partition("## The life of a sample\n")[2].partition("\n## ")[0]
    numbers = [int(number) for number in re.findall(r"^(\d+)\. `", section, re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert f"passes {len(numbers)} functions" in " ".join(section.split())
    assert len(numbers) <= MAX_FUNCTIONS
