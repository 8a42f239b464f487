"""Every option, extra and command that a message or a page names exists."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from knobctl.cli import main
from knobctl.tests.support.cli_commands import every_command

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
SOURCES = sorted(
    path
    for folder in ("data", "precompute", "controllers", "replay", "serving", "commands")
    for path in (ROOT / folder).rglob("*.py")
) + sorted(ROOT.glob("*.py"))

OPTION = re.compile(r"(?<![\w/-])--[A-Za-z][\w-]*")
EXTRA = re.compile(r"knobctl\[([\w, -]+)\]")
# `knobctl NAME ...` in backquotes, alone on an indented line, or in a block of shell commands.
COMMAND = re.compile(r"(?:^ {4,}|`)knobctl ([a-z][a-z-]*)(?: ([a-z][a-z-]*))?(?![\w/.])([^`\n]*)", re.MULTILINE)
SCRIPT = re.compile(r"-m knobctl\.([\w.]+)|(benchmarks/\w+)\.py")
# Options of other programs, by the page that names them.
FOREIGN = {
    "docs/guides/migrate.md": {
        "--results_dir",  # the original training script's
        "--dataset_names",
        "--model_path",
        "--output_dir",
        "--batch_size",
        "--num_epochs",
        "--stage1_lr_ratio",
        "--group_size",
        "--use_multi_gpu",
    },
    "docs/guides/serve.md": {"--model_args", "--include_path", "--tasks", "--output_path"},  # lmms-eval's
    "docs/scale.md": {"--nproc-per-node", "--address", "--array", "--gpus-per-task"},  # torchrun's, Ray's, Slurm's
}


COMMANDS = every_command()


def options_of(command: click.Command) -> set[str]:
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}


EVERY_OPTION = set().union(*(options_of(command) for command in [main, *COMMANDS.values()]))


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Yields the lines of a page, continued ones joined, or the string literals of a source file, with their lines.

    Lines of shell blocks are indented, as commands in source files are.
    """
    if path.suffix == ".md":
        is_shell = False
        for number, line in enumerate(re.sub(r"\s*\\\n\s*", " ", path.read_text()).splitlines(), start=1):
            is_shell = line == "```sh" if line.startswith("```") else is_shell
            yield number, "    " + line if is_shell else line
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


EVERY_TEXT = [(path, line, text) for path in (*SOURCES, *PAGES) for line, text in texts(path)]


def script_options(path: Path) -> set[str]:
    """The options that a script declares."""
    return (
        set(re.findall(r"""(?:add_argument|click\.option)\(\s*["'](--[\w-]+)""", path.read_text()))
        if path.is_file()
        else set()
    )


def options_known_in(path: Path) -> set[str]:
    """The command line's options, and those of the scripts that the file is or names, and of other programs."""
    known = EVERY_OPTION | FOREIGN.get(str(path.relative_to(ROOT)), set()) | script_options(path)
    for module, script in SCRIPT.findall(path.read_text()):
        known |= script_options(ROOT / f"{module.replace('.', '/') or script}.py")
    return known


def exists(option: str, known: set[str]) -> bool:
    """Whether an option is known; one that ends in a hyphen is the start of an f-string."""
    return option in known or (option.endswith("-") and any(name.startswith(option) for name in known))


def test_every_option_exists():
    known = {path: options_known_in(path) for path in (*SOURCES, *PAGES)}
    named = [(path, line, option) for path, line, text in EVERY_TEXT for option in OPTION.findall(text)]
    assert len(named) > 100
    assert [f"{path}:{line} {option}" for path, line, option in named if not exists(option, known[path])] == []


def test_every_extra_exists():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = [(path, line, found) for path, line, text in EVERY_TEXT for found in EXTRA.findall(text)]
    assert len(named) > 3
    assert [
        f"{path}:{line} {found}" for path, line, found in named if not set(re.split(r", *", found)) <= set(extras)
    ] == []


def test_every_command_exists_and_has_the_options_that_stand_beside_it():
    wrong, seen = [], 0
    for path, line, text in EVERY_TEXT:
        for first, second, rest in COMMAND.findall(text):
            seen += 1
            is_group = isinstance(COMMANDS.get((first,)), click.Group) and second
            command = COMMANDS.get((first, second) if is_group else (first,))
            if command is None:
                wrong.append(f"{path}:{line} knobctl {first} {second}")
                continue
            # What follows a semicolon or a comment sign is about something else.
            beside = OPTION.findall(re.split(r"[;#|]", rest)[0])
            wrong += [f"{path}:{line} knobctl {first} {name}" for name in beside if name not in options_of(command)]
    assert seen > 30
    assert wrong == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("run `knobctl precompute --out X`", [("precompute", "", " --out X")]),
        ("    knobctl importance measure --model nano", [("importance", "measure", " --model nano")]),
        ("knobctl reads caches", []),
    ],
)
def test_commands_are_found_where_they_are_meant(text, found):
    assert COMMAND.findall(text) == found
