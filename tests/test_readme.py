"""README and docs are correct: commands parse, and the README's four steps run on the bundled model."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from knobctl.cli import main
from knobctl.tests.support.cli_commands import every_command

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = every_command()
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))


def commands(page: Path) -> list[str]:
    """Returns the indented `knobctl ...` lines, continued lines joined, comments and `...` lines left out."""
    text = page.read_text().replace("\\\n", " ")
    found = [re.sub(r"\s+#.*", "", line).strip() for line in re.findall(r"^    (knobctl .*)$", text, re.MULTILINE)]
    return [line for line in found if "..." not in line]


@pytest.mark.parametrize("command", [command for page in PAGES for command in commands(page)])
def test_every_documented_command_parses(command: str):
    words = tuple(shlex.split(command)[1:])
    name = words[:2] if words[:2] in COMMANDS else words[:1]
    with COMMANDS[name].make_context(" ".join(name), list(words[len(name) :])):
        pass


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if not isinstance(command, click.Group)])
def test_every_command_shows_an_example(name: tuple[str, ...]):
    example = re.search(rf"^\s*knobctl {' '.join(name)} (.*)$", COMMANDS[name].help or "", re.MULTILINE)
    assert example
    with COMMANDS[name].make_context(" ".join(name), shlex.split(example[1])):
        pass


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
