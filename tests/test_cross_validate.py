"""Cross-validation: every sample is tested once, by policies fitted without any sample of its image."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
from click.testing import CliRunner

from knobctl.cli import main
from knobctl.data.errors import CacheError, KnobctlError
from knobctl.data.generated.cache import write_generated
from knobctl.replay.policies.ablations import ABLATIONS
from knobctl.replay.policies.decide import decide
from knobctl.replay.recipes import recipe
from knobctl.replay.report.tables import render_report
from knobctl.replay.training.cross_validate import (
    FoldResult,
    cross_validate,
    fold_policies,
    fold_splits,
    pooled,
    start_warnings,
)
from knobctl.tests.support.caches import foreign_cache, make_cache, write_array_cache
from knobctl.tests.support.recorded_progress import RecordedProgress
from knobctl.tests.support.replay_inputs import encoder_for, small_generated, tables_of

QUICK = recipe("tuned", seeds=(0, 1), epochs=2, min_steps=4, warm_start_steps=5)
BASELINES = ("table", "neighbours", "neighbours_token", "oracle")


def test_every_sample_is_tested_once_and_each_image_is_in_one_split():
    rng = np.random.default_rng(0)
    cluster_S = rng.integers(0, 40, size=300)
    sample_N = np.flatnonzero(rng.random(300) < 0.9)
    splits = fold_splits(cluster_S, sample_N, 5, 0)
    assert sorted(np.concatenate([split["test"] for split in splits])) == sample_N.tolist()
    for split in splits:
        assert sorted(np.concatenate(list(split.values()))) == sample_N.tolist()
        images = [set(cluster_S[rows]) for rows in split.values()]
        assert [len(found) for found in images] == [28, 4, 8]  # of 40: 70, 10 and 20 %
        assert len(set.union(*images)) == 40
    again, other = fold_splits(cluster_S, sample_N, 5, 0), fold_splits(cluster_S, sample_N, 5, 1)
    assert all((one["test"] == two["test"]).all() for one, two in zip(splits, again, strict=True))
    assert set(other[0]["test"]) != set(splits[0]["test"])


def test_two_folds_divide_the_other_half_into_train_and_val():
    splits = fold_splits(np.arange(8), np.arange(8), 2, 3)
    assert [[len(rows) for rows in split.values()] for split in splits] == [[2, 2, 4]] * 2


def test_too_few_images_or_folds_are_refused():
    with pytest.raises(KnobctlError, match=r"--folds is 1: give at least 2"):
        fold_splits(np.arange(9), np.arange(9), 1, 0)
    with pytest.raises(KnobctlError, match=r"9 images are too few for 5 folds.*give --folds 4 or fewer$"):
        fold_splits(np.arange(9), np.arange(9), 5, 0)
    with pytest.raises(KnobctlError, match=r"at least 4 images with outcomes, and the cache has 3"):
        fold_splits(np.arange(3), np.arange(3), 5, 0)


def test_fitting_never_reads_the_test_fold():
    """Other outcomes, features and tokens for half of the test samples do not change the choices for the other half."""
    tables = tables_of(small_generated())
    splits = fold_splits(tables.cluster_S, np.arange(len(tables.sample_ids)), 4, 0)[0]
    changed, kept = np.array_split(splits["test"], 2)
    accuracy_SX, latency_ms_SX = tables.accuracy_SX.copy(), tables.latency_ms_SX.copy()
    feature_SD, token_STPMD = tables.language_feature_SD.copy(), tables.token_STPMD.copy()
    accuracy_SX[changed] = 1.0 - accuracy_SX[changed]
    latency_ms_SX[changed] *= 7.0
    feature_SD[changed] += 3.0
    token_STPMD[changed] += 3.0
    other = replace(
        tables,
        accuracy_SX=accuracy_SX,
        latency_ms_SX=latency_ms_SX,
        language_feature_SD=feature_SD,
        token_STPMD=token_STPMD,
    )

    def chosen(tables) -> dict[str, np.ndarray]:
        how = {"baselines": BASELINES, "with_ablations": True, "seed": 0}
        policies, _ = fold_policies(tables.with_splits(splits), encoder_for(tables), QUICK, **how, advance=lambda: None)
        return {policy.name: decide(policy, tables, kept, range(3)) for policy in policies}

    before, after = chosen(tables), chosen(other)
    assert {"seed-0", "seed-1", "seed-0:stage1_only", *BASELINES} <= set(before)
    for name, setting_NM in before.items():
        np.testing.assert_array_equal(setting_NM, after[name], err_msg=name)


def test_the_report_pools_the_choices_of_all_folds(tmp_path: Path):
    write_generated(small_generated(), tmp_path / "cache")
    progress = RecordedProgress()
    report = cross_validate(tmp_path / "cache", QUICK, folds=4, baselines=BASELINES, resamples=50, progress=progress)
    assert (report.folds, report.split, report.n_samples) == (4, "all", 200)
    assert report.subjects == ("controllers",)
    assert list(report.policies) == ["controllers", "seed-0", "seed-1", *BASELINES]
    assert progress.done == [(step, 16) for step in range(1, 17)]  # 4 epochs, for min_steps, in each of 4 folds
    for versus in ("table", "neighbours", "neighbours_token"):
        mean, *seeds = (report.compared(name, versus) for name in ("controllers", "seed-0", "seed-1"))
        for figure in ("reward", "accuracy", "latency_ms", "violation_rate"):
            each = [seed.differences[figure].value for seed in seeds]
            assert mean.differences[figure].value == pytest.approx(np.mean(each), abs=1e-12)
        assert mean.differences["reward"].low <= mean.differences["reward"].value <= mean.differences["reward"].high
    both = [report.policies[name].knobs["top_k"] for name in ("seed-0", "seed-1")]
    assert report.policies["controllers"].knobs["top_k"] == pytest.approx(
        {value: np.mean([knobs[value] for knobs in both]) for value in both[0]}
    )
    record = json.loads(report.to_json())
    folds = record["controllers"]["seed-1"]["folds"]
    assert [fold["samples"] for fold in folds] == [{"train": 125, "val": 25, "test": 50}] * 4
    assert record["controllers"]["seed-1"]["settings"]["fold_seed"] == 0
    # The oracle takes the best setting of each sample in any fold; the table one setting per budget and fold.
    table = report.decisions.tables
    best = [table.reward_BX(np.arange(200), np.full(200, budget)).max(axis=1).mean() for budget in table.budgets_ms_M]
    assert report.policies["oracle"].overall.metrics["reward"].value == pytest.approx(float(np.mean(best)), abs=1e-6)
    assert all(len(np.unique(column)) <= 4 for column in report.decisions.chosen["table"].T)
    assert "cross-validated in 4 folds, each tested with policies fitted on the others: 200 samples" in str(
        render_report(report).renderables[0]
    )
    again = cross_validate(tmp_path / "cache", QUICK, folds=4, baselines=BASELINES, resamples=50)
    assert again.to_dict() == report.to_dict()


def test_settings_are_pooled_in_the_order_of_samples():
    results = [
        FoldResult(np.array([7, 3]), {"a": np.array([[1, 2], [3, 4]])}, {}),
        FoldResult(np.array([5]), {"a": np.array([[9, 9]])}, {}),
    ]
    assert pooled(results, np.array([3, 5, 7]))["a"].tolist() == [[3, 4], [9, 9], [1, 2]]
    with pytest.raises(AssertionError, match="every sample"):
        pooled(results, np.array([3, 5, 6, 7]))


def test_folds_that_kept_the_warm_start_are_counted():
    rows = np.zeros((1, 1), dtype=np.int64)
    ends = [{"a": {"best_epoch": 0}, "b": {"best_epoch": 3}}, {"a": {"best_epoch": 9}, "b": {"best_epoch": 3}}]
    warnings = start_warnings([FoldResult(np.array([place]), {"a": rows}, end) for place, end in enumerate(ends)])
    assert len(warnings) == 1
    assert warnings[0].startswith("a: in 1 of 2 folds no checkpoint beat the warm start")


def test_an_unknown_baseline_is_refused_before_training(tmp_path: Path):
    make_cache(tmp_path / "cache", samples=30)
    progress = RecordedProgress()
    with pytest.raises(KnobctlError, match="unknown baselines"):
        cross_validate(tmp_path / "cache", QUICK, baselines=["tables"], progress=progress)
    assert not progress.done


def test_a_cache_without_tokens_is_refused_before_training(tmp_path: Path):
    make_cache(tmp_path / "cache", samples=30, tokens=False)
    with pytest.raises(CacheError, match=r"^cache .* has no latency tokens"):
        cross_validate(tmp_path / "cache", QUICK)


def test_caches_that_cannot_be_trained_on_are_refused(tmp_path: Path):
    unknown = np.full((8, 4), np.nan)
    with pytest.raises(CacheError, match="has no latency tokens"):
        cross_validate(write_array_cache(tmp_path / "few", np.ones((8, 4)), np.ones((8, 4))), QUICK)
    space = {"token_STPMD": np.zeros((8, 2, 1, 1, 4)), "splits": ["train"] * 8}
    with pytest.raises(CacheError, match="has no latency_ms in any row"):
        cross_validate(write_array_cache(tmp_path / "untimed", np.ones((8, 4)), unknown, **space), QUICK)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--device", "nonsense"), "is unknown"),
        (("--seeds", ","), "at least one"),
        (("--train-budget-encoder",), "works with one seed only"),
        (("--folds", "999"), "too few for 999 folds"),
    ],
)
def test_invalid_options_of_the_command_are_one_line(tmp_path: Path, options: tuple[str, ...], words: str):
    cache = make_cache(tmp_path / "cache", samples=20)
    refused = CliRunner().invoke(main, ["cross-validate", str(cache), *options])
    assert refused.exit_code == 1, refused.output
    assert refused.stderr.startswith("Error: ")
    assert words in refused.stderr


def test_the_report_contains_the_warnings_of_cache_and_training(tmp_path: Path):
    """A cache without image ids, with an outcome and tokens missing; and training that cannot beat its warm start."""
    cache = foreign_cache(
        tmp_path / "cache",
        ids=[f"s{index}" for index in range(20)],
        outcomes=lambda table: table.slice(1),
        latency_tokens=lambda table: table.filter(
            pc.or_(pc.not_equal(table["sample_id"], "s3"), pc.equal(table["tier"], "low"))
        ),
    )
    report = cross_validate(cache, replace(QUICK, lr=1e-12), folds=2, baselines=["table"], resamples=20)
    warnings = " | ".join(report.warnings)
    for words in (
        "the cache has no image_id",
        "1 samples of split `all` lack some outcomes",
        "of the latency tokens of split `all` are missing",
        "seed-1: in 2 of 2 folds no checkpoint beat the warm start on val",
    ):
        assert words in warnings
    assert report.cluster_by == "sample_id"


def test_the_options_of_the_command_reach_the_report(tmp_path: Path):
    cache = make_cache(tmp_path / "cache", samples=40)
    asked = ["--folds", "2", "--seeds", "5", "--epochs", "1", "--resamples", "30", "--seed", "4", "--json"]
    asked += ["--budgets", "20,80", "--baseline", "table", "--ablations"]

    def record(*more: str) -> dict:
        result = CliRunner().invoke(main, ["cross-validate", str(cache), *asked, *more])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    found = record()
    assert found["bootstrap"] == {"resamples": 30, "confidence": 0.95, "seed": 4}
    assert found["budgets_ms"] == [20.0, 80.0]
    assert list(found["policies"]) == ["controllers", *(f"controllers:{part}" for part in ABLATIONS), "table"]
    assert found["latency_percentiles_over"] == "runs"
    assert found["cache"]["path"] == str(cache)
    divided = record("--fold-seed", "3")["controllers"]["controllers"]
    assert divided["settings"]["fold_seed"] == 3
    assert divided["folds"] != found["controllers"]["controllers"]["folds"]


def test_the_command_prints_one_report(tmp_path: Path):
    cache = make_cache(tmp_path / "cache", samples=40)
    words = ["cross-validate", str(cache), "--folds", "2", "--seeds", "5", "--epochs", "1", "--resamples", "20"]
    result = CliRunner().invoke(main, [*words, "--json", "--estimator", "exact", "--reward-alpha", "2"])
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert (record["folds"], record["subjects"]) == (2, ["controllers"])
    assert record["controllers"]["controllers"]["settings"]["seeds"] == [5]
    assert record["controllers"]["controllers"]["settings"]["estimator"] == "exact"
    assert record["reward_weights"]["alpha"] == 2.0
    shown = CliRunner().invoke(main, [*words, "--baseline", "table"])
    assert "controllers" in shown.stdout
    assert "budget-only table" in shown.stdout
