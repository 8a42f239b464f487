"""README and docs are correct: commands parse, and the README's four steps run on the bundled model."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from knobctl.cli import main

ROOT = Path(__file__).resolve().parent.parent
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))


def commands(page: Path) -> list[str]:
    """Returns the indented `knobctl ...` lines, continued lines joined, comments and `...` lines left out."""
    text = page.read_text().replace("\\\n", " ")
    found = [re.sub(r"\s+#.*", "", line).strip() for line in re.findall(r"^    (knobctl .*)$", text, re.MULTILINE)]
    return [line for line in found if "..." not in line]


@pytest.mark.parametrize("command", [command for page in PAGES for command in commands(page)])
def test_every_documented_command_parses(command: str):
    name, *arguments = shlex.split(command)[1:]
    subcommand = main.commands[name]
    while isinstance(subcommand, click.Group):
        name, *arguments = arguments
        subcommand = subcommand.commands[name]
    with subcommand.make_context(name, arguments):
        pass


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_command_shows_an_example(name: str):
    command = main.commands[name]
    for one in command.commands.values() if isinstance(command, click.Group) else [command]:
        assert re.search(r"^\s*knobctl ", one.help or "", re.MULTILINE), one.name


def test_the_steps_of_the_readme_run_and_live_equals_replay(tmp_path: Path):
    """precompute, train, validate, validate --live as on the first page, with fewer samples and knob values."""
    path = [command for command in commands(ROOT / "README.md") if "nano" in command or "runs/controllers" in command]
    assert [shlex.split(command)[1] for command in path] == ["precompute", "train", "validate", "validate"]
    fewer = {
        "precompute": "--samples 8 --tiers low,medium --top-k 4,8 --num-blocks 12,16 --runs 1",
        "train": "--epochs 2",
    }
    for command in path:
        words = shlex.split(command.replace("runs/", f"{tmp_path}/").replace("--samples 200", ""))[1:]
        result = CliRunner().invoke(main, [*words, *shlex.split(fewer.get(words[0], "--resamples 20"))])
        assert result.exit_code == 0, result.output
    assert "same setting" in result.stdout
    shares = re.findall(r"(?:bit-equal|same)\s+[a-z ]+(\d+)/(\d+)", " ".join(result.stdout.split()))
    assert len(shares) == 5
    assert all(same == total for same, total in shares), result.stdout
