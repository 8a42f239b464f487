"""Arguments that the demo passes to each step. The steps take minutes and are replaced."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from knobctl.commands import demo
from knobctl.console import ConsoleProgress
from knobctl.data.errors import KnobctlError
from knobctl.precompute.scale import launch as run
from knobctl.replay.evaluation import validate
from knobctl.replay.training import train

AGREEMENT = {"disagreements": [], **dict.fromkeys(("settings_compared", "same_setting"), 1)}


class Report:
    @staticmethod
    def to_dict() -> dict:
        return {"live": {"agreement": {**AGREEMENT, "answers_compared": 1, "same_answer": 1}}}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the steps, which do nothing, were called with."""
    found: dict[str, Any] = {}
    monkeypatch.setattr(run, "precompute", lambda config, _: found.update(precompute=config))
    monkeypatch.setattr(train, "train_controllers", lambda *_, **__: None)
    monkeypatch.setattr(validate, "validate_controllers", lambda *_, **options: found.update(options) or Report())
    return found


def test_the_demo_runs_at_most_20_samples_live(tmp_path: Path, asked: dict[str, Any]):
    record = demo.run_demo(tmp_path, samples=130, seed=42, progress=ConsoleProgress())
    assert asked["live_samples"] == 20
    assert asked["executor_factory"] is not None
    assert asked["precompute"].samples == 130
    assert json.loads((tmp_path / "report.json").read_text()) == record


def test_a_report_that_cannot_be_written_is_one_line(tmp_path: Path, asked: dict[str, Any]):
    (tmp_path / "report.json").mkdir()
    with pytest.raises(
        KnobctlError, match=r"report\.json \(Is a directory\): .* run the same command again"
    ) as failure:
        demo.run_demo(tmp_path, samples=130, seed=42, progress=ConsoleProgress())
    assert asked
    assert "\n" not in str(failure.value)
