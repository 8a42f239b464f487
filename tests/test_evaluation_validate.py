"""`validate_controllers` and `compare` on a cache on disk: the whole path except training."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import polars as pl
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from knobctl.controllers.checkpoint import Controllers
from knobctl.controllers.service_levels import Calibration, ServiceLevel
from knobctl.data.cache.reader import Cache, open_cache
from knobctl.data.errors import CacheMismatch, CheckpointError, KnobctlError
from knobctl.data.knobs import KnobSetting
from knobctl.replay.evaluation.choices import CHOICES_SCHEMA
from knobctl.replay.evaluation.compare import compare, short_names
from knobctl.replay.evaluation.validate import validate_controllers
from knobctl.replay.evaluation.warnings import few_warnings
from knobctl.replay.latency_fit import fit_expected_latency
from knobctl.replay.policies.ablations import ABLATIONS
from knobctl.replay.policies.registry import DEFAULT_BASELINES
from knobctl.replay.report.tables import render_report
from knobctl.replay.tables import ReplayTables
from knobctl.tests.support.caches import BUDGETS_MS, FOUR, make_cache, write_array_cache
from knobctl.tests.support.random_controllers import random_controllers

WEIGHTS = {"alpha": 2.0, "beta": 0.5, "gamma": 10.0, "delta": 0.1, "epsilon": 0.05}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    path = tmp_path_factory.mktemp("validate") / "cache"
    cache = open_cache(make_cache(path, samples=60))
    random_controllers(cache, path.parent / "a", settings={"reward_weights": WEIGHTS})
    random_controllers(cache, path.parent / "b", seed=1)
    return cache


def test_the_report_has_controllers_and_baselines(cache: Cache):
    report = validate_controllers(cache.path.parent / "a", cache.path, resamples=50)
    assert list(report.policies) == ["controllers", *DEFAULT_BASELINES]
    assert report.subjects == ("controllers",)
    assert report.reward_weights == WEIGHTS  # those of its training
    record = json.loads(report.to_json())
    assert record["controllers"]["parameters"]["stage1"] > 0
    assert record["cache"]["fingerprint"] == cache.fingerprint
    against = {item["versus"] for item in record["comparisons"] if item["policy"] == "controllers"}
    assert against == {"table", "dataset_table", "neighbours"}


def test_written_choices_reproduce_the_figures_of_the_report(cache: Cache, tmp_path: Path):
    out = tmp_path / "deep" / "choices.parquet"
    report = validate_controllers(cache.path.parent / "a", cache.path, resamples=50, choices_out=out)
    written = pq.read_table(out)
    assert written.schema.equals(CHOICES_SCHEMA)
    frame = pl.from_arrow(written)
    assert len(frame) == report.n_samples * len(BUDGETS_MS)
    assert frame.select("sample_id", "budget_ms").is_duplicated().sum() == 0
    scored = [
        cache.accuracy_SX[cache.sample_index[name], cache.space.index(KnobSetting(tier, p, k, n))]
        for name, _, tier, p, k, n in frame.rows()
    ]
    mean = sum(float(accuracy) for accuracy in scored) / len(scored)
    assert mean == pytest.approx(report.policies["controllers"].overall.metrics["accuracy"].value)
    assert [path.name for path in out.parent.iterdir()] == ["choices.parquet"]


def test_the_controllers_under_a_service_level_are_reported_in_addition_to_the_plain_ones(cache: Cache, tmp_path: Path):
    path, out = tmp_path / "calibrated", tmp_path / "choices.parquet"
    made = Controllers.from_pretrained(random_controllers(cache, path))
    made.expected_latency = fit_expected_latency(ReplayTables.from_cache(cache))
    made.calibration = Calibration(0.1, (ServiceLevel(0.9, 0.7, 40, 40), ServiceLevel(0.95, None, 40, 40)))
    made.save_pretrained(path)
    report = validate_controllers(path, cache.path, resamples=50, within=0.9, choices_out=out)
    assert report.subjects == ("controllers", "controllers within 0.9")
    plain, restricted = (report.policies[name].overall.metrics for name in report.subjects)
    missed = "violation_rate_of_feasible"
    assert restricted[missed].value < plain[missed].value
    assert report.compared("controllers within 0.9", "controllers") is not None
    chosen = report.decisions.chosen
    settings = [str(cache.space.settings[index]) for index in chosen["controllers within 0.9"].ravel()]
    assert [f"{t}/p{p}/k{k}/n{n}" for _, _, t, p, k, n in pl.read_parquet(out).rows()] == settings
    assert (chosen["controllers within 0.9"] != chosen["controllers"]).any()
    with pytest.raises(CheckpointError, match=r"keeping 0\.95 of the budgets needs at least 59 calibration images"):
        validate_controllers(path, cache.path, within=0.95)
    with pytest.raises(CheckpointError, match=r"--within 0\.5: choose from 0\.9, 0\.95"):
        validate_controllers(path, cache.path, within=0.5)
    with pytest.raises(CheckpointError, match=r"can promise no service level .* had too few images"):
        validate_controllers(cache.path.parent / "a", cache.path, within=0.9)


def test_budgets_and_splits_can_be_chosen_and_unknown_ones_are_named_in_the_error(cache: Cache):
    controllers = cache.path.parent / "a"
    report = validate_controllers(controllers, cache.path, resamples=20, budgets_ms=[80.0, 20.0], split="val")
    assert (report.split, report.budgets_ms) == ("val", (20.0, 80.0))
    with pytest.raises(KnobctlError, match=r"budgets \[41.0\] ms are not in the cache's grid.*\[20.0, 40.0, 80.0\] ms"):
        validate_controllers(controllers, cache.path, budgets_ms=[41.0])
    with pytest.raises(KnobctlError, match="no sample with outcomes in split `later`"):
        validate_controllers(controllers, cache.path, split="later")
    with pytest.raises(KnobctlError, match="unknown baselines"):
        validate_controllers(controllers, cache.path, baselines=["tables"])


def test_controllers_that_do_not_fit_the_cache_are_refused_naming_both(cache: Cache, tmp_path: Path):
    other = write_array_cache(tmp_path / "other", [[1] * 4] * 4, [[1.0] * 4] * 4, splits=["train"] * 2 + ["test"] * 2)
    with pytest.raises(CacheMismatch, match=r"choose among .*but cache .*other has"):
        validate_controllers(cache.path.parent / "a", other)
    random_controllers(cache, tmp_path / "odd", settings={"reward_weights": {**WEIGHTS, "beta": "much"}})
    with pytest.raises(CheckpointError, match=r"settings.reward_weights.beta must be a finite number, not 'much'"):
        validate_controllers(tmp_path / "odd", cache.path)
    assert len(FOUR.settings) == 4


def test_controllers_on_a_cache_without_tokens_raise_a_clear_error(tmp_path: Path):
    cache = open_cache(make_cache(tmp_path / "cache", samples=30, tokens=False))
    random_controllers(cache, tmp_path / "controllers")
    with pytest.raises(KnobctlError, match="`controllers` reads latency tokens, and the cache has none"):
        validate_controllers(tmp_path / "controllers", cache.path)
    report = compare(cache.path, resamples=20)
    assert list(report.policies) == list(DEFAULT_BASELINES)


def test_compare_puts_controllers_side_by_side_with_ablations(cache: Cache):
    parent = cache.path.parent
    report = compare(cache.path, [parent / "a", parent / "b"], resamples=50, with_ablations=True)
    assert report.subjects == ("a", "b")
    assert list(report.policies)[:2] == ["a", "b"]
    assert {f"{name}:{part}" for name in ("a", "b") for part in ABLATIONS} <= set(report.policies)
    assert report.compared("b", "a") is not None
    assert report.compared("a:stage1_only", "table") is not None
    assert any("a was trained with other reward weights" in warning for warning in report.warnings)
    assert "b is" in text_of(report)


def test_names_of_controllers_are_as_short_as_is_unambiguous():
    assert short_names([Path("runs/a"), Path("runs/b")]) == ["a", "b"]
    assert short_names([Path("one/seed0"), Path("two/seed0")]) == ["one/seed0", "two/seed0"]
    assert len(set(short_names([Path("a"), Path("a")]))) == 2
    assert short_names([Path("runs/table"), Path("runs/b")]) == ["table (controllers)", "b"]


def text_of(report: object) -> str:
    console = Console(width=220, file=io.StringIO())
    console.print(render_report(report))
    return console.file.getvalue()


def test_controllers_trained_on_another_cache_get_a_warning(cache: Cache, tmp_path: Path):
    controllers = Controllers.from_pretrained(cache.path.parent / "a")
    for name, fingerprint, said in (("own", cache.fingerprint, False), ("other", "0" * 64, True)):
        controllers.cache_fingerprint = fingerprint
        controllers.save_pretrained(tmp_path / name)
        report = validate_controllers(tmp_path / name, cache.path, resamples=10)
        assert any("trained on another cache" in warning for warning in report.warnings) == said


def test_writing_choices_below_a_file_raises_a_clear_error(cache: Cache, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(KnobctlError, match="cannot write the choices"):
        validate_controllers(
            cache.path.parent / "a", cache.path, resamples=10, choices_out=tmp_path / "file" / "x.parquet"
        )


def test_missing_tokens_give_a_warning_if_policies_read_them(cache: Cache, tmp_path: Path):
    path = tmp_path / "cache"
    shutil.copytree(cache.path, path)
    shutil.rmtree(path / "derived", ignore_errors=True)
    for part in (path / "latency_tokens").iterdir():
        table = pq.read_table(part)
        pq.write_table(table.filter(pc.equal(table.column("tier"), "low")), part)
    record = json.loads((path / "cache.json").read_text())
    del record["files"]
    (path / "cache.json").write_text(json.dumps(record))
    report = validate_controllers(cache.path.parent / "a", path, resamples=10, baselines=["oracle"])
    assert any(warning.startswith("50.0% of the latency tokens") for warning in report.warnings)
    whole = validate_controllers(cache.path.parent / "a", cache.path, resamples=10, baselines=["oracle"])
    assert not any("latency tokens" in warning for warning in whole.warnings)


def test_groups_of_few_images_are_named():
    assert few_warnings({"overall": 25, "a": 21}, "image_id") == []
    assert few_warnings({"overall": 25, "a": 21, "b": 4}, "sample_id") == [
        "only 4 samples of b: bootstrap intervals from so few are too narrow"
    ]
    assert few_warnings({"overall": 5, "a": 4, "b": 1}, "image_id") == [
        "only 5 images: bootstrap intervals from so few are too narrow"
    ]
    assert few_warnings({"overall": 21, "a": 20, "b": 1}, "image_id") == [
        "a single image of b: no interval can be given"
    ]
