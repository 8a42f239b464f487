"""Training settings with which nothing can be learned are refused; runs that learned nothing from rewards note it."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from knobctl.controllers.checkpoint import WEIGHTS_NAME
from knobctl.data.errors import KnobctlError
from knobctl.data.knobs import KnobSpace
from knobctl.replay.recipes import RECIPES, recipe
from knobctl.replay.reward import RewardWeights
from knobctl.replay.training.train import train_tables
from knobctl.tests.support.recorded_progress import RecordedProgress
from knobctl.tests.support.replay_inputs import QUICK, SMALL_SPACE, encoder_for, small_generated, tables_of

SHORT = {**QUICK, "epochs": 2, "evaluations": 1}
NONE = RewardWeights(0, 0, 0, 0, 0)


@pytest.fixture(scope="module")
def tables():
    return tables_of(small_generated(space=SMALL_SPACE))


def run(tables, out, **changes):
    options = {name: changes.pop(name) for name in ("resume",) if name in changes}
    progress = RecordedProgress()
    config = recipe("tuned", **{**SHORT, **changes})
    report = train_tables(tables, encoder_for(tables), out, config, where="tables", progress=progress, **options)
    return report, progress.notes


@pytest.mark.parametrize("name", sorted(RECIPES))
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group_size": 1}, "group_size is 1.*give at least 2, or estimator exact"),
        ({"group_size": 0}, "group_size must be at least 1"),
        ({"reward_weights": NONE}, "all reward weights are 0"),
        ({"reward_weights": RewardWeights(beta=-0.5)}, "reward weights must not be negative: beta -0.5"),
        ({"reward_weights": RewardWeights(alpha=-1.0, delta=-2.0)}, "not be negative: alpha -1, delta -2"),
        ({"lr": 0.0}, "lr must be above 0"),
        ({"stage1_lr_ratio": 0.0}, "stage1_lr_ratio must be above 0"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"advantage_clip": 0.0}, "advantage_clip must be above 0"),
    ],
)
def test_settings_with_which_nothing_can_be_learned_are_refused(name, changes, message):
    with pytest.raises(KnobctlError, match=message):
        recipe(name, **changes)


@pytest.mark.parametrize("weight", ["alpha", "beta", "gamma", "delta", "epsilon"])
def test_a_single_reward_term_is_enough(weight):
    recipe("tuned", reward_weights=replace(NONE, **{weight: 1.0}))


def test_the_exact_estimator_accepts_groups_of_one():
    recipe("tuned", group_size=1, estimator="exact")


def equal_settings(tables):
    """Returns tables in which accuracy and latency are the same under all settings."""
    return replace(
        tables,
        accuracy_SX=np.repeat(tables.accuracy_SX[:, :1], tables.accuracy_SX.shape[1], axis=1),
        latency_ms_SX=np.full_like(tables.latency_ms_SX, 30.0),
    )


WEIGHTS = RewardWeights(epsilon=0.0)  # complexity differs between settings in any table


@pytest.mark.parametrize("estimator", ["grpo", "exact"])
def test_a_cache_with_equal_rewards_for_all_settings_is_noted(tables, tmp_path, estimator):
    report, notes = run(equal_settings(tables), tmp_path, estimator=estimator, reward_weights=WEIGHTS)
    assert any("the reward of each training sample is the same under every setting" in note for note in report.notes)
    assert set(report.notes) <= set(notes)
    tied = [note for note in report.notes if "the rewards of every group tied (frac_reward_zero_std is 1)" in note]
    assert len(tied) == (estimator == "grpo")


def test_a_cache_with_a_single_setting_is_noted(tmp_path):
    space = KnobSpace(("low",), (1,), (4,), (4,))
    report, _ = run(tables_of(small_generated(space=space)), tmp_path)
    assert any("nothing to choose" in note for note in report.notes)


def test_runs_that_learn_have_no_note(tables, tmp_path):
    report, _ = run(tables, tmp_path, seeds=(1, 2))
    assert not [note for note in report.notes if "tied" in note or "reward" in note]


def test_ties_before_resuming_are_counted(tables, tmp_path):
    """A run that learned before the interruption has no note, even if all later rewards tie."""
    run(tables, tmp_path)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    for tied, expected in ((log, 1), ([log[0] | {"frac_reward_zero_std": 0.5}, *log[1:]], 0)):
        lines = [line | {"frac_reward_zero_std": 1.0} if place or expected else line for place, line in enumerate(tied)]
        (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        report, _ = run(tables, tmp_path, resume=True)  # already complete: only its log is read
        assert len([note for note in report.notes if "rewards of every group tied" in note]) == expected


def test_the_exact_estimator_logs_no_spread_within_groups(tables, tmp_path):
    run(tables, tmp_path, estimator="exact")
    with (tmp_path / "log.csv").open() as file:
        steps = [row for row in csv.DictReader(file) if row["reward"]]
    assert steps
    assert {row["reward_std"] + row["frac_reward_zero_std"] for row in steps} == {""}


def test_training_seeds_together_changes_at_most_the_last_digits(tables, tmp_path):
    run(tables, tmp_path / "alone", seeds=(7,))
    run(tables, tmp_path / "beside", seeds=(7, 8))
    alone, beside = (load_file(path / WEIGHTS_NAME) for path in (tmp_path / "alone", tmp_path / "beside" / "seed-7"))
    for name, tensor in alone.items():
        torch.testing.assert_close(beside[name].float(), tensor.float(), rtol=1e-3, atol=1e-4)
