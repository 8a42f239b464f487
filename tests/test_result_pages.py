"""`benchmarks/demo_runs.py` and `bundled.py`: what they record of a report, and their pages."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner

from knobctl.data.generated.cache import write_generated
from knobctl.replay.recipes import recipe
from knobctl.replay.training.cross_validate import cross_validate
from knobctl.tests.support.replay_inputs import small_generated

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def demo_runs(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import demo_runs

    return demo_runs


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A cross-validation with two seeds."""
    cache = tmp_path_factory.mktemp("generated") / "cache"
    write_generated(small_generated(), cache)
    quick = recipe("tuned", seeds=(0, 1), epochs=1, min_steps=2, warm_start_steps=2)
    found = cross_validate(cache, quick, folds=2, baselines=["table", "dataset_table"], resamples=50).to_dict()
    return {**found, "seconds": {"precompute": 1.0}, "live": {"agreement": {"same_setting": 9}}}


def ended(seed: int, difference: float, verdict: str) -> dict:
    found = {"value": difference, "low": difference - 0.02, "high": difference + 0.02, "adjusted_p_value": 0.006}
    comparisons = {"table": {**found, "verdict": verdict}}
    return {"seed": seed, "seconds": 200.4 + seed, "samples": 260, "rewards": {"controllers": 0.8}} | {
        "comparisons": comparisons
    }


def test_the_table_counts_verdicts_and_shows_failed_runs(demo_runs: ModuleType, tmp_path: Path):
    """All runs are in the log, so that none is run."""
    runs = [ended(0, 0.05, "better"), ended(1, 0.01, "no difference shown"), ended(2, -0.03, "worse")]
    runs.append({"seed": 3, "seconds": 9.0, "error": "Error: the disk is full"})
    (tmp_path / "log").write_text("".join(json.dumps(run) + "\n" for run in runs))
    result = CliRunner().invoke(demo_runs.main, ["--seeds", "4", "--log", str(tmp_path / "log")])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert "| 0 | 200 | 260 | 0.800 | +0.050 [+0.030, +0.070] better (p 0.006) |" in lines
    assert any("Error: the disk is full" in line for line in lines)
    assert "* 3 of 4 runs ended; the longest took 202 s." in lines
    assert "* Against `table`: mean difference +0.010; better in 1, worse in 1 of 3 runs." in lines
    assert "* Runs that are worse than any baseline: 1." in lines


def test_a_run_is_recorded_by_its_mean_over_seeds(demo_runs: ModuleType, report: dict[str, Any]):
    run = json.loads(json.dumps(demo_runs.result_of(report)))
    assert run["controller_seeds"] == ["seed-0", "seed-1"]
    assert run["rewards"]["controllers"] == pytest.approx((run["rewards"]["seed-0"] + run["rewards"]["seed-1"]) / 2)
    expected = run["rewards"]["controllers"] - run["rewards"]["table"]
    assert run["comparisons"]["table"]["value"] == pytest.approx(expected)


def test_the_page_of_the_bundled_cache_has_a_line_for_the_mean_and_each_seed(
    report: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import bundled

    lines = bundled.page({**report, "cache": {**report["cache"], "device": {"name": "toy"}}}).splitlines()
    start = lines.index("## Differences")
    rows = [line.split(" | ")[0] for line in lines[start:] if line.startswith("| ")]
    assert rows == ["| ", "| ---", "| controllers", "| seed-0", "| seed-1"]
    reward = report["comparisons"][0]["differences"]["reward"]
    expected = f"{reward['value']:+.3f} [{reward['low']:+.3f}, {reward['high']:+.3f}]"
    assert expected in next(line for line in lines[start:] if line.startswith("| controllers"))
    assert any(line.startswith("| table: budget-only table | ") for line in lines)
