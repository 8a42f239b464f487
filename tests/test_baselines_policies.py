"""Choices of fixed settings, tables, oracle, chance and ablations, worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from knobctl.data.cache.reader import open_cache
from knobctl.data.errors import CacheError, KnobctlError
from knobctl.data.knobs import KnobSpace
from knobctl.replay.expected_outcomes import mean_over_samples
from knobctl.replay.policies.ablations import ABLATIONS, Ablation, ablations
from knobctl.replay.policies.decide import decide
from knobctl.replay.policies.registry import BASELINES, build_baselines
from knobctl.replay.tables import ReplayTables
from knobctl.tests.support.caches import FOUR, generated_cache, write_array_cache

# Latency of low/12, low/16, high/12, high/16; under 100 ms the last is over budget.
LATENCY_MS = [20.0, 40.0, 60.0, 130.0]


def table_of(path: Path, accuracy_SX: list[list[float]], **options: object) -> ReplayTables:
    latency = options.pop("latency_ms_SX", np.tile(LATENCY_MS, (len(accuracy_SX), 1)))
    return ReplayTables.from_cache(open_cache(write_array_cache(path, np.array(accuracy_SX), latency, **options)))


def chosen(table: ReplayTables, name: str, split: str = "test", budgets: tuple[int, ...] = (0,)) -> list[list[int]]:
    (policy,) = build_baselines([name], table)
    return decide(policy, table, table.measured(split), budgets).tolist()


SPLITS = ["train", "train", "test", "test"]


def test_tables_choose_the_setting_with_the_highest_mean_reward_in_training(tmp_path: Path):
    accuracy = [[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]]
    table = table_of(tmp_path / "c", accuracy, splits=SPLITS, budgets_ms=(40.0, 100.0))
    # In training high/12 (60 ms) is correct, but 50 % over the first budget costs 2.5, more than an answer earns.
    assert chosen(table, "table", budgets=(0, 1)) == [[0, 2], [0, 2]]
    assert chosen(table, "oracle", budgets=(0, 1)) == [[0, 0], [0, 0]]
    assert chosen(table, "oracle", split="train", budgets=(1,)) == [[2], [2]]


def test_the_dataset_table_depends_on_the_dataset_and_falls_back_to_the_budget_table(tmp_path: Path):
    accuracy = [[1, 1, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1], [0] * 4, [0] * 4, [0] * 4]
    options = {"splits": ["train"] * 3 + ["test"] * 3, "datasets": ["a", "b", "b", "a", "b", "never seen"]}
    table = table_of(tmp_path / "c", accuracy, **options)
    assert chosen(table, "dataset_table") == [[0], [2], [2]]
    assert chosen(table, "table") == [[2], [2], [2]]


def test_full_is_the_unmodified_model_and_cheapest_the_fastest_in_training(tmp_path: Path):
    latency = np.array([[50, 20, 60, 130], [50, 20, 60, 130], [1, 200, 60, 130], [1, 200, 60, 130]], float)
    table = table_of(tmp_path / "c", [[1] * 4] * 4, splits=SPLITS, latency_ms_SX=latency)
    assert chosen(table, "full") == [[3], [3]]
    assert chosen(table, "cheapest") == [[1], [1]]


def test_full_uses_the_native_top_k_even_if_a_larger_one_is_possible(tmp_path: Path):
    space = KnobSpace(("low", "high"), (2, 1), (4, 8, 16), (12, 16))
    accuracy, latency = np.ones((2, len(space.settings))), np.ones((2, len(space.settings)))
    path = write_array_cache(tmp_path / "c", accuracy, latency, space=space, splits=["train", "test"])
    cache = open_cache(path)
    object.__setattr__(cache.manifest, "native_top_k", 8)
    table = ReplayTables.from_cache(cache)
    (full,) = chosen(table, "full")
    assert str(space.settings[full[0]]) == "high/p1/k8/n16"


def test_best_fixed_uses_one_setting_for_all_budgets(tmp_path: Path):
    table = table_of(tmp_path / "c", [[0, 1, 1, 1]] * 4, splits=SPLITS, budgets_ms=(30.0, 100.0))
    # low/16 exceeds the first budget at a high cost; low/12 is never correct. High/12 is far too slow for 30 ms.
    assert chosen(table, "table", budgets=(0, 1)) == [[0, 1], [0, 1]]
    fixed = chosen(table, "best_fixed", budgets=(0, 1))
    assert fixed[0][0] == fixed[0][1]
    mean_X = table.train_rewards.mean_MX.mean(axis=0)
    assert fixed[0][0] == int(mean_X.argmax())


def test_ties_go_to_the_setting_that_comes_first(tmp_path: Path):
    table = table_of(tmp_path / "c", [[0.0] * 4] * 4, splits=SPLITS, latency_ms_SX=np.full((4, 4), 50.0))
    object.__setattr__(table, "weights", type(table.weights)(epsilon=0.0))
    assert chosen(table, "table") == [[0], [0]]
    assert chosen(table, "oracle") == [[0], [0]]


@pytest.mark.parametrize("name", ["full", "cheapest", "random", "best_fixed", "table", "dataset_table", "neighbours"])
def test_a_missing_outcome_is_never_chosen(tmp_path: Path, name: str):
    rng = np.random.default_rng(0)
    accuracy = rng.integers(0, 2, (40, 4)).astype(float)
    accuracy[rng.random((40, 4)) < 0.5] = np.nan
    accuracy[:, 1] = np.where(np.isnan(accuracy).all(axis=1), 1.0, accuracy[:, 1])
    latency = np.where(rng.random((40, 4)) < 0.1, np.nan, np.tile(LATENCY_MS, (40, 1)))
    latency[:, 1] = 40.0
    accuracy[:, 1] = np.nan_to_num(accuracy[:, 1], nan=0.0)
    options = {"splits": ["train"] * 20 + ["val"] * 10 + ["test"] * 10, "latency_ms_SX": latency}
    table = table_of(tmp_path / "c", accuracy.tolist(), feature_SD=rng.standard_normal((40, 4)), **options)
    rows = table.measured("test")
    setting_N = np.array(chosen(table, name))[:, 0]
    assert table.available_SX[rows, setting_N].all()


def test_a_setting_that_no_training_sample_has_comes_last(tmp_path: Path):
    nan = float("nan")
    accuracy = [[0, nan, 1, 1], [0, nan, 1, 1], [1, 1, 0, 0], [nan, 1, nan, nan]]
    table = table_of(tmp_path / "c", accuracy, splits=SPLITS)
    assert chosen(table, "table") == [[2], [1]]  # the last sample has no other setting


def test_means_do_not_favour_a_setting_that_only_easy_samples_have():
    easy, hard = [0.9, 1.0], [0.1, 0.2]  # the second setting is better by 0.1 on every sample
    value_NX = np.array([easy, [0.9, np.nan], hard, [np.nan, 0.2], [np.nan, 0.2]], dtype=np.float32)
    mean_X = mean_over_samples(value_NX)
    assert np.nanmean(value_NX, axis=0)[0] > np.nanmean(value_NX, axis=0)[1]  # plain means mislead
    assert mean_X[1] - mean_X[0] == pytest.approx(0.1, abs=0.02)


def test_random_choices_depend_on_seed_sample_and_budget_but_not_on_request_order(tmp_path: Path):
    cache = generated_cache(tmp_path / "c")
    table = ReplayTables.from_cache(cache)
    rows = table.measured("test")
    (one,), (other,) = build_baselines(["random"], table, seed=1), build_baselines(["random"], table, seed=2)
    straight = decide(one, table, rows, (0, 1))
    backward = decide(one, table, rows[::-1], (1, 0))[::-1, ::-1]
    assert (straight == backward).all()
    assert (straight[:, 0] != straight[:, 1]).mean() > 0.9
    assert (straight != decide(other, table, rows, (0, 1))).mean() > 0.9
    tier_share = np.bincount(table.space.value_index_KX[0, straight.ravel()], minlength=3) / straight.size
    np.testing.assert_allclose(tier_share, 1 / 3, atol=0.12)


def test_ablations_use_the_policy_s_values_of_the_knobs_they_name(tmp_path: Path):
    table = ReplayTables.from_cache(generated_cache(tmp_path / "c"))
    rows = table.measured("test")
    lookup, oracle = build_baselines(["oracle", "table"], table)
    knobs = table.space.value_index_KX
    whole, fallback = (decide(policy, table, rows, (2,))[:, 0] for policy in (oracle, lookup))
    for policy in ablations(oracle, lookup):
        setting_N = decide(policy, table, rows, (2,))[:, 0]
        part = policy.name.removeprefix("oracle:")
        kept = [
            knob
            for knob, name in enumerate(("tier", "insertion_position", "top_k", "num_blocks"))
            if name in ABLATIONS[part]
        ]
        if part in ("stage1_only", "only_tier", "only_insertion_position"):
            assert (knobs[kept][:, setting_N] == knobs[kept][:, whole]).all()
        else:  # Stage2 chooses the oracle's best setting with the table's pair
            assert (knobs[:2, setting_N] == knobs[:2, fallback]).all()
        assert (setting_N != fallback).any()
        assert (setting_N != whole).any()


def test_an_ablation_falls_back_if_a_sample_lacks_the_wanted_knob_value(tmp_path: Path):
    nan = float("nan")
    table = table_of(tmp_path / "c", [[0, 0, 1, 1], [0, 0, 1, 1], [nan, nan, 1, 1], [1, 1, 1, 1]], splits=SPLITS)
    cheapest, lookup = build_baselines(["cheapest", "table"], table)
    low = Ablation("tier of the cheapest", cheapest, lookup, ["tier"])
    assert decide(low, table, table.measured("test"), (0,)).tolist() == [[2], [0]]


def test_a_policy_that_chooses_an_unavailable_setting_is_refused(tmp_path: Path):
    table = table_of(tmp_path / "c", [[1, 1, 1, 1], [1, 1, 1, float("nan")]], splits=["train", "test"])

    class Stubborn:
        name = "stubborn"
        uses_latency_token = False

        def choose_image(self, requests):
            return np.ones(len(requests), int), np.zeros(len(requests), int)

        def choose_compute(self, requests, *_):
            return np.zeros(len(requests), int), np.ones(len(requests), int)

    with pytest.raises(CacheError, match="`stubborn` chose high/p1/k8/n16 for sample s001"):
        decide(Stubborn(), table, table.measured("test"), (0,))


def test_baselines_that_are_not_possible_are_refused_with_the_reason(tmp_path: Path):
    table = table_of(tmp_path / "c", [[1] * 4] * 2, splits=["test", "test"])
    with pytest.raises(KnobctlError, match=r"unknown baselines \['lookup'\]: choose from full, "):
        build_baselines(["lookup"], table)
    with pytest.raises(
        KnobctlError, match=r"baseline `table` is not possible, because .*split `train`: leave out --baseline table$"
    ):
        build_baselines(["table"], table)
    skipped: list[str] = []
    assert [policy.name for policy in build_baselines(list(BASELINES), table, skipped=skipped)] == [
        "full",
        "random",
        "oracle",
    ]
    assert len(skipped) == len(BASELINES) - 3
    assert len(FOUR.settings) == 4
