"""The demo: arguments of its steps (which take minutes and are replaced), and a small real run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from knobctl.cli import main
from knobctl.commands import demo, live
from knobctl.console import ConsoleProgress
from knobctl.data.errors import KnobctlError
from knobctl.precompute.scale import launch
from knobctl.replay.evaluation import validate
from knobctl.replay.policies.registry import DEFAULT_BASELINES
from knobctl.replay.report.page import write
from knobctl.replay.training import cross_validate, train

AGREEMENT = {"disagreements": [], **dict.fromkeys(("settings_compared", "same_setting"), 1)}


class Report:
    @staticmethod
    def to_dict() -> dict:
        return {"live": {"agreement": {**AGREEMENT, "answers_compared": 1, "same_answer": 1}}}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the steps, which do nothing, were called with."""
    found: dict[str, Any] = {}

    def judge(_cache: Path, config: object, **options: object) -> Report:
        found["cross_validate"] = {"config": config, **options}
        return Report()

    monkeypatch.setattr(demo, "answer_twice", lambda *_: [])
    monkeypatch.setattr(write, "write_report", lambda *_, **options: found.update(page=options))
    monkeypatch.setattr(launch, "precompute", lambda config, _: found.update(precompute=config))
    monkeypatch.setattr(cross_validate, "cross_validate", judge)
    monkeypatch.setattr(train, "train_controllers", lambda _cache, _out, config, **_: found.update(train=config))
    monkeypatch.setattr(live, "live_system", lambda *_, **options: options)
    monkeypatch.setattr(validate, "validate_controllers", lambda *_, **options: found.update(options) or Report())
    return found


def test_the_demo_runs_at_most_20_samples_live(tmp_path: Path, asked: dict[str, Any]):
    record = demo.run_demo(tmp_path, samples=130, seed=42, progress=ConsoleProgress())
    assert asked["live_samples"] == 20
    assert asked["live"] is not None
    assert asked["precompute"].samples == 130
    assert asked["page"]["out"] == tmp_path / "report.html"
    assert json.loads((tmp_path / "report.json").read_text()) == record


def test_every_random_choice_follows_from_the_demo_seed(tmp_path: Path, asked: dict[str, Any]):
    used = []
    for seed in (0, 1):
        demo.run_demo(tmp_path, samples=130, seed=seed, progress=ConsoleProgress())
        judged = asked["cross_validate"]
        assert (asked["precompute"].seed, judged["fold_seed"], judged["seed"], asked["seed"]) == (seed,) * 4
        assert asked["train"].seeds == judged["config"].seeds[:1]
        used += judged["config"].seeds
    assert len(used) == len(set(used)) == 2 * demo.CONTROLLER_SEEDS


def test_every_step_is_announced_with_its_place(
    tmp_path: Path, asked: dict[str, Any], capsys: pytest.CaptureFixture[str]
):
    record = demo.run_demo(tmp_path, samples=130, seed=0, progress=ConsoleProgress())
    assert asked
    lines = capsys.readouterr().err.splitlines()
    names = list(record["seconds"])
    assert names == ["precompute", "cross-validate", "train", "validate --live", "answer", "report"]
    for number, name in enumerate(names, start=1):
        mine = [line for line in lines if line.startswith(f"step {number} of {len(names)}, {name}: ")]
        assert len(mine) == 2
        assert mine[1].endswith("done in 0 s")


def test_a_report_that_cannot_be_written_is_one_line(tmp_path: Path, asked: dict[str, Any]):
    (tmp_path / "report.json").mkdir()
    with pytest.raises(
        KnobctlError, match=r"report\.json \(Is a directory\): .* run the same command again"
    ) as failure:
        demo.run_demo(tmp_path, samples=130, seed=42, progress=ConsoleProgress())
    assert asked
    assert "\n" not in str(failure.value)


@pytest.mark.slow
def test_a_small_demo_runs_every_step_and_judges_by_all_samples(tmp_path: Path):
    result = CliRunner().invoke(main, ["demo", "--samples", "20", "--seed", "1", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "report.json").read_text())
    assert (record["n_samples"], record["folds"], record["subjects"]) == (40, 5, ["controllers"])
    assert set(record["policies"]) == {"controllers", "seed-3", "seed-4", "seed-5", *DEFAULT_BASELINES}
    assert record["live"]["agreement"]["settings_compared"] > 0
    assert (tmp_path / "controllers" / "train.json").is_file()
    assert "Averaged over 5 budgets from " in (tmp_path / "report.html").read_text()
    shown = result.stdout
    for words in (
        "The controllers answer ",
        "over all samples, mean of 3 controller seeds: 40 samples x 5 budgets",
        "verdicts corrected for 3 comparisons (Holm)",
        "budget-only table",
        "equal those of replay",
    ):
        assert words in " ".join(shown.split())
    # Tables show the mean over controller seeds; only a note may name one of the seeds.
    assert not [line for line in shown.splitlines() if line.split()[:1] == ["seed-3"]]
