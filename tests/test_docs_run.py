"""The documentation is correct: its commands parse, and its blocks run, page by page from top to bottom."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from knobctl.cli import main
from knobctl.data.knobs import KnobSpace
from knobctl.tests.support.caches import make_cache
from knobctl.tests.support.cli_commands import every_command
from knobctl.tests.support.pages import GENERATED, NEEDS, PAGES, ROOT, blocks, given
from knobctl.tools.docs.cli_reference import reference

COMMANDS = every_command()
EVERY_BLOCK = [block for page in PAGES for block in blocks(page)]
# Sizes in pages, and what a test runs in their place.
SMALL = "--samples 12 --tiers low,medium --top-k 4,8 --num-blocks 12,16 --runs 1"
SMALLER = {
    r"(knobctl precompute .*)--samples \d+\b": rf"\1{SMALL}",
    r"(knobctl (?:train|cross-validate) .*)": r"\1 --epochs 2",
    r"(knobctl (?:validate|compare|cross-validate) .*)": r"\1 --resamples 20",
    r"(knobctl cross-validate .*)": r"\1 --folds 2 --seeds 0",
    r"samples=200": "samples=10, space=SPACE, runs=1",
    r"epochs=60": "epochs=1",
    r"folds=5": "folds=2",
}


def smaller(text: str) -> str:
    for pattern, replacement in SMALLER.items():
        text = re.sub(pattern, replacement, text)
    return text


def shown(command: str) -> list[str]:
    """Returns the words of a `knobctl` command; none for another program's."""
    command = command.replace("$SLURM_ARRAY_TASK_ID", "1")
    return shlex.split(command)[1:] if command.startswith("knobctl ") else []


def prepare(folder: Path, names: list[str]) -> None:
    """Makes what a page takes as given."""
    (folder / "tests").symlink_to(ROOT / "tests")  # small files that pages show the import of
    for name in names:
        if name == "runs/cache":
            make_cache(folder / name, samples=60)
        else:
            assert name == "runs/controllers", f"unknown: {name}"
            run(["train", "runs/cache", "--out", name, "--epochs", "1"])


def run(words: list[str]) -> str:
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, f"knobctl {shlex.join(words)}\n{result.output}"
    return result.output


def runnable_pages() -> list[Any]:
    """Returns the pages with blocks that a test can run; those that run the model or train are slow."""
    found = []
    for page in PAGES:
        texts = [b.text for b in blocks(page) if b.language in ("sh", "python") and b.needs is None]
        if texts:
            is_slow = re.search(r"knobctl (precompute --model|train|cross-validate)", "".join(texts))
            found.append(pytest.param(page, marks=pytest.mark.slow if is_slow else (), id=page.stem))
    return found


@pytest.mark.parametrize("page", runnable_pages())
def test_the_blocks_of_a_page_run_from_top_to_bottom(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path, given(page))
    names = {"SPACE": KnobSpace(("low",), (1,), (8,), (15, 16))}
    for block in blocks(page):
        if block.needs is not None:
            continue
        if block.language == "python":
            exec(compile(smaller(block.text), f"{page.name}:{block.line}", "exec"), names)
        elif block.language == "sh":
            for command in block.commands:
                assert shown(command), f"{page}:{block.line}: mark what is not knobctl's: {command}"
                run(shown(smaller(command)))


@pytest.mark.slow
def test_the_path_of_the_guides_runs_and_live_equals_replay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """precompute, train, validate and validate --live, as the first commands of three guides show them."""
    monkeypatch.chdir(tmp_path)
    guides = [ROOT / "docs" / "guides" / f"{name}.md" for name in ("precompute", "train", "evaluate")]
    path = [next(block.commands[0] for block in blocks(page) if block.language == "sh") for page in guides]
    path += [command for b in blocks(guides[-1]) if b.language == "sh" for command in b.commands if "--live" in command]
    assert [shown(command)[0] for command in path] == ["precompute", "train", "validate", "validate"]
    for command in path:
        output = run(shown(smaller(command)))
    shares = re.findall(r"(?:bit-equal|same)\s+[a-z ]+(\d+)/(\d+)", " ".join(output.split()))
    assert len(shares) == 6
    assert all(same == total for same, total in shares), output


def test_a_block_that_is_not_run_says_what_it_needs():
    assert len(EVERY_BLOCK) > 40
    assert {block.needs for block in EVERY_BLOCK} == {None, *NEEDS}
    assert {block.language for block in EVERY_BLOCK} <= {"sh", "python", "text", "json", "yaml"}


@pytest.mark.parametrize(
    ("command", "where"),
    [(command, f"{b.page.name}:{b.line}") for b in EVERY_BLOCK if b.language == "sh" for command in b.commands],
)
def test_every_command_of_a_page_parses(command: str, where: str):  # noqa: ARG001  in the test's id
    words = tuple(shown(command) or shlex.split(command.partition("-m knobctl.cli ")[2]))
    if words:
        name = words[:2] if words[:2] in COMMANDS else words[:1]
        with COMMANDS[name].make_context(" ".join(name), list(words[len(name) :])):
            pass


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if not isinstance(command, click.Group)])
def test_every_command_shows_an_example(name: tuple[str, ...]):
    example = re.search(rf"^\s*knobctl {' '.join(name)} (.*)$", COMMANDS[name].help or "", re.MULTILINE)
    assert example
    with COMMANDS[name].make_context(" ".join(name), shlex.split(example[1])):
        pass


def test_the_reference_of_the_command_line_is_the_generated_one():
    assert GENERATED.read_text() == reference(), (
        f"run: python -m knobctl.tools.docs.cli_reference {GENERATED.relative_to(ROOT)}"
    )
