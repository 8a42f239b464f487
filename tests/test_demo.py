"""What the demo asks of each step; the steps themselves are replaced, for they take minutes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from knobctl import demo
from knobctl.data.progress import SILENT
from knobctl.precompute.scale import launch as run
from knobctl.replay.evaluation import validate
from knobctl.replay.training import train

AGREEMENT = {"disagreements": [], **dict.fromkeys(("settings_compared", "same_setting"), 1)}


class Report:
    @staticmethod
    def to_dict() -> dict:
        return {"live": {"agreement": {**AGREEMENT, "answers_compared": 1, "same_answer": 1}}}


def test_the_demo_runs_at_most_20_samples_live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked: dict = {}
    monkeypatch.setattr(run, "precompute", lambda config: asked.update(precompute=config))
    monkeypatch.setattr(train, "train_controllers", lambda *_: None)
    monkeypatch.setattr(validate, "validate_controllers", lambda *_, **options: asked.update(options) or Report())
    record = demo.run_demo(tmp_path, samples=130, seed=42, log=lambda _: None, progress=SILENT)
    assert asked["live_samples"] == 20
    assert asked["executor_factory"] is not None
    assert asked["precompute"].samples == 130
    assert json.loads((tmp_path / "report.json").read_text()) == record
