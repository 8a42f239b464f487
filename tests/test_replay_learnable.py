"""Training settings that cannot learn anything are refused; runs that learned nothing from rewards say so."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from knobctl.controllers.checkpoint import WEIGHTS_NAME
from knobctl.data.errors import KnobctlError
from knobctl.data.knobs import KnobSpace
from knobctl.replay.recipes import RECIPES, recipe
from knobctl.replay.reward import RewardWeights
from knobctl.replay.training.train import train_tables
from knobctl.tests.support.replay_inputs import SMALL_SPACE, encoder_for, small_generated, tables_of

QUICK = {
    "epochs": 2,
    "min_steps": 0,
    "batch_size": 32,
    "evaluations": 1,
    "log_interval": 2,
    "basis_rows": 1,
    "warm_start_steps": 20,
}
NONE = RewardWeights(0, 0, 0, 0, 0)


@pytest.fixture(scope="module")
def tables():
    return tables_of(small_generated(space=SMALL_SPACE))


def run(tables, out, **changes):
    options = {name: changes.pop(name) for name in ("resume",) if name in changes}
    said = []
    config = recipe("tuned", **{**QUICK, **changes})
    report = train_tables(tables, encoder_for(tables), out, config, where="tables", say=said.append, **options)
    return report, said


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
def test_settings_that_cannot_learn_are_refused(name, changes, message):
    with pytest.raises(KnobctlError, match=message):
        recipe(name, **changes)


@pytest.mark.parametrize("weight", ["alpha", "beta", "gamma", "delta", "epsilon"])
def test_one_term_of_the_reward_is_enough(weight):
    recipe("tuned", reward_weights=replace(NONE, **{weight: 1.0}))


def test_the_exact_estimator_draws_no_groups():
    recipe("tuned", group_size=1, estimator="exact")


def all_alike(tables):
    """Returns tables in which all settings answer and take alike, rewarded for just that."""
    return replace(
        tables,
        accuracy_SX=tables.accuracy_SX[:, :1].expand_as(tables.accuracy_SX).contiguous(),
        latency_ms_SX=torch.full_like(tables.latency_ms_SX, 30.0),
    )


WEIGHTS = RewardWeights(epsilon=0.0)  # complexity differs between settings whatever they do


@pytest.mark.parametrize("estimator", ["grpo", "exact"])
def test_a_cache_in_which_no_choice_matters_is_noted(tables, tmp_path, estimator):
    report, said = run(all_alike(tables), tmp_path, estimator=estimator, reward_weights=WEIGHTS)
    assert any("every setting earns each training sample the same reward" in note for note in report.notes)
    assert set(report.notes) <= set(said)
    tied = [note for note in report.notes if "all groups tied throughout (frac_reward_zero_std is 1)" in note]
    assert len(tied) == (estimator == "grpo")


def test_a_single_setting_is_noted(tmp_path):
    space = KnobSpace(("low",), (1,), (4,), (4,))
    report, _ = run(tables_of(small_generated(space=space)), tmp_path)
    assert any("nothing to choose" in note for note in report.notes)


def test_runs_that_learn_are_not_noted(tables, tmp_path):
    report, _ = run(tables, tmp_path, seeds=(1, 2))
    assert not [note for note in report.notes if "tied" in note or "reward" in note]


def test_ties_before_a_resumed_run_count(tables, tmp_path):
    """Rewards that differed before the interruption were learned from, whatever the rest of the run shows."""
    run(tables, tmp_path)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    for tied, expected in ((log, 1), ([log[0] | {"frac_reward_zero_std": 0.5}, *log[1:]], 0)):
        lines = [line | {"frac_reward_zero_std": 1.0} if place or expected else line for place, line in enumerate(tied)]
        (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        report, _ = run(tables, tmp_path, resume=True)  # it was done already: only its log is read
        assert len([note for note in report.notes if "all groups tied" in note]) == expected


def test_the_exact_estimator_logs_no_spread_of_groups(tables, tmp_path):
    run(tables, tmp_path, estimator="exact")
    with (tmp_path / "log.csv").open() as file:
        steps = [row for row in csv.DictReader(file) if row["reward"]]
    assert steps
    assert {row["reward_std"] + row["frac_reward_zero_std"] for row in steps} == {""}


def test_a_seed_trained_beside_others_differs_in_the_last_digits_at_most(tables, tmp_path):
    run(tables, tmp_path / "alone", seeds=(7,))
    run(tables, tmp_path / "beside", seeds=(7, 8))
    alone, beside = (load_file(path / WEIGHTS_NAME) for path in (tmp_path / "alone", tmp_path / "beside" / "seed-7"))
    for name, tensor in alone.items():
        torch.testing.assert_close(beside[name].float(), tensor.float(), rtol=1e-3, atol=1e-4)
