"""Training starts from a look-up table per dataset, which only a significantly better checkpoint replaces."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from knobctl.replay.recipes import CLASSIC, recipe
from knobctl.replay.training.data import prepare_training
from knobctl.replay.training.policy import StackedPolicy
from knobctl.replay.training.trainer import Trainer, surpasses
from knobctl.replay.training.warm_start import (
    PRIOR_SAMPLES,
    average_sample,
    average_samples,
    known_rewards,
    mean_reward,
)
from knobctl.tests.support.replay_inputs import SMALL_SPACE, encoder_for, small_generated, tables_of


@pytest.fixture(scope="module")
def tables():
    return tables_of(small_generated(space=SMALL_SPACE))


def exists(tables):
    """Which pairs of choices are settings, [J, A]."""
    return torch.from_numpy(tables.space.setting_JA >= 0)


def trainer_of(tables, **changes):
    config = recipe("tuned", **{"epochs": 2, "min_steps": 0, "basis_rows": 1, **changes})
    return Trainer(prepare_training(tables, encoder_for(tables), config), config)


def table_rewards(trainer):
    """The highest mean reward of a setting over the training split, for each budget."""
    train = trainer.inputs["train"]
    known_NJA = known_rewards(train, exists(trainer.data.tables))
    return torch.stack([mean_reward(train, known_NJA, budget).max() for budget in range(train.budgets)])


def test_the_warm_start_makes_the_choices_of_the_table(tables):
    trainer = trainer_of(tables, seeds=(0, 1))
    exists_JA = exists(tables)
    _, reward_NSM = trainer.policy.greedy(average_sample(trainer.inputs["train"], exists_JA))
    best_M = table_rewards(trainer)
    cold = trainer_of(tables, seeds=(0, 1), warm_start_steps=0)
    _, cold_NSM = cold.policy.greedy(average_sample(cold.inputs["train"], exists_JA))
    assert torch.all((best_M - reward_NSM[:, 0]).mean(dim=1) < 0.01)
    assert torch.all((best_M - cold_NSM[:, 0]).mean(dim=1) > 0.05)


def test_holes_are_left_out_of_the_means(tables):
    accuracy_SX = tables.accuracy_SX.copy()
    train_S = tables.indices("train")
    accuracy_SX[train_S[::2], 3] = math.nan  # known for every other sample
    accuracy_SX[train_S, 5] = math.nan  # known for none
    trainer = trainer_of(replace(tables, accuracy_SX=accuracy_SX))
    train, exists_JA = trainer.inputs["train"], exists(tables)
    average = average_sample(train, exists_JA)
    reward_NMX = torch.from_numpy(tables.reward_NMX(tables.indices("train")))
    place = np.argwhere(tables.space.setting_JA == 3)[0].tolist()
    torch.testing.assert_close(average.reward_NMJA[0, :, place[0], place[1]], reward_NMX[1::2, :, 3].mean(dim=0))
    nowhere = np.argwhere(tables.space.setting_JA == 5)[0].tolist()
    assert average.allowed_NJA is not None
    assert not average.allowed_NJA[0, nowhere[0], nowhere[1]]


def test_each_dataset_starts_from_its_own_table(tables):
    """Half of the samples, identifiable by their language feature, are correct under the other half of the settings."""
    train_S = tables.indices("train")
    dataset_S = np.arange(len(tables.sample_ids)) % 2
    odd_S = dataset_S == 1
    accuracy_SX = np.zeros_like(tables.accuracy_SX)
    settings = accuracy_SX.shape[1]
    accuracy_SX[~odd_S, : settings // 2] = 1.0
    accuracy_SX[odd_S, settings // 2 :] = 1.0
    language_SD = tables.language_feature_SD.copy()
    language_SD[:, 0] = np.where(odd_S, 3.0, -3.0)
    changed = replace(tables, accuracy_SX=accuracy_SX, language_feature_SD=language_SD)
    train_reward = {}
    for name, groups in (("one table", np.zeros_like(dataset_S)), ("a table each", dataset_S)):
        trainer = trainer_of(replace(changed, datasets=tuple(map(str, groups))))
        _, reward_NSM = trainer.policy.greedy(trainer.inputs["train"])
        train_reward[name] = float(reward_NSM.mean())
    assert len(train_S) > 2 * PRIOR_SAMPLES
    assert train_reward["a table each"] > train_reward["one table"] + 0.3


def test_mean_rewards_of_a_small_dataset_are_shrunk_towards_the_overall_mean(tables):
    train = trainer_of(tables).inputs["train"]
    exists_JA = exists(tables)
    group_N = torch.zeros(len(train), dtype=torch.int64)
    group_N[:PRIOR_SAMPLES] = 7
    averages = average_samples(train, exists_JA, group_N)
    everyone, own = train.reward_NMJA.mean(dim=0), train.reward_NMJA[:PRIOR_SAMPLES].mean(dim=0)
    assert len(averages) == 2
    torch.testing.assert_close(averages.reward_NMJA[1], (everyone + own) / 2)
    torch.testing.assert_close(averages.language_NF[1], train.language_NF[:PRIOR_SAMPLES].mean(dim=0))


def test_surpassing_needs_more_than_a_standard_error_of_the_paired_difference():
    other_NV = torch.zeros(3, 4, dtype=torch.float64)
    reward_NV = torch.tensor([[0.2, 0.2, 0.2, 0.1], [1.0, -0.9, 0.3, -0.1], [-0.2, -0.2, -0.2, -0.1]]).double()
    assert surpasses(reward_NV, other_NV).tolist() == [True, False, False]
    assert surpasses(torch.ones(2, 1), torch.zeros(2, 1)).tolist() == [True, True]


def evaluated(trainer, rewards_NV, monkeypatch):
    """Evaluates once with these rewards on val; returns the best epoch of each seed."""
    budgets = trainer.inputs["val"].budgets
    reward_NVM = torch.as_tensor(rewards_NV)[:, :, None].expand(-1, -1, budgets)
    choice_NVM = torch.zeros(reward_NVM.shape).long()
    monkeypatch.setattr(StackedPolicy, "greedy", lambda *_: (choice_NVM, reward_NVM))
    trainer.epoch += 1
    trainer.evaluate()
    return trainer.best_epoch_N.tolist()


def test_the_latest_weights_are_kept_unless_earlier_ones_are_significantly_better(tables, monkeypatch):
    trainer = trainer_of(tables)
    start_V = trainer.top_reward_NV[0]
    noise_V = torch.linspace(-1, 1, len(start_V)).double()
    assert evaluated(trainer, (start_V - 0.01 + noise_V)[None], monkeypatch) == [0]  # below the start
    assert evaluated(trainer, (start_V + 0.05)[None], monkeypatch) == [2]
    assert evaluated(trainer, (start_V + 0.04 + noise_V)[None], monkeypatch) == [3]  # no significant difference on val
    assert evaluated(trainer, (start_V + 0.03)[None], monkeypatch) == [3]  # significantly worse than the second
    assert trainer.best_reward_N[0] == pytest.approx(float((start_V + 0.04).mean()))


def test_the_warm_start_is_kept_if_no_checkpoint_beats_it(tables):
    trainer = trainer_of(tables, lr=1e-9)
    start = [tensor.clone() for tensor in trainer.best]
    while not trainer.done:
        trainer.run_epoch()
        trainer.evaluate()
    assert trainer.best_epoch_N.tolist() == [0]
    assert all(torch.equal(a, b) for a, b in zip(start, trainer.best, strict=True))


def test_the_classic_recipe_has_no_warm_start():
    assert CLASSIC.warm_start_steps == 0


def test_stage1_choices_without_outcomes_are_left_out_of_the_means(tables):
    accuracy_SX = tables.accuracy_SX.copy()
    train_S = tables.indices("train")
    high_X = [x for x, setting in enumerate(tables.space.settings) if setting.tier == "high"]
    accuracy_SX[train_S[::2, None], high_X] = math.nan
    trainer = trainer_of(replace(tables, accuracy_SX=accuracy_SX))
    train, exists_JA = trainer.inputs["train"], exists(tables)
    average = average_sample(train, exists_JA)
    reward_NMX = torch.from_numpy(tables.reward_NMX(tables.indices("train")))
    for setting in high_X:
        pair, compute = np.argwhere(tables.space.setting_JA == setting)[0].tolist()
        torch.testing.assert_close(average.reward_NMJA[0, :, pair, compute], reward_NMX[1::2, :, setting].mean(dim=0))


def test_the_warm_start_does_not_count_against_patience(tables):
    trainer = trainer_of(tables, seeds=(0, 1, 2, 3), patience=1)
    assert trainer.stale_N.tolist() == [0, 0, 0, 0]
    assert not trainer.done
