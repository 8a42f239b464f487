"""The commands of the quickstart run, in its order, on the bundled cache."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from knobctl.cli import main
from knobctl.tests.support.pages import blocks

PAGE = Path(__file__).resolve().parent.parent / "docs" / "quickstart.md"
# Cross-validation takes half a minute; less of it shows the same.
LESS = {"cross-validate": "--folds 2 --seeds 0,1 --epochs 1 --resamples 100"}


def test_the_quickstart_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    lines = [command for block in blocks(PAGE) for command in block.commands if command.startswith("knobctl ")]
    commands = [shlex.split(line)[1:] for line in lines]
    assert [words[0] for words in commands] == ["train", "validate", "cross-validate", "validate"]
    shown = []
    for words in commands:
        result = CliRunner().invoke(main, [*words, *shlex.split(LESS.get(words[0], ""))])
        assert result.exit_code == 0, result.output
        shown.append(" ".join(result.stdout.split()))
    assert "test split: 128 samples" in shown[1]
    assert "cross-validation (2 folds)" in shown[2]
    assert "cross-validated in 2 folds" in (tmp_path / "runs" / "report.html").read_text()
    for policy in ("budget-only table", "per-dataset table", "nearest neighbours", "oracle"):
        assert f" {policy} " in shown[2]
    live = re.findall(r"same (setting|answer) (\d+)/(\d+)", shown[3])
    assert [name for name, *_ in live] == ["setting", "answer"]
    assert all(same == total for _, same, total in live)
