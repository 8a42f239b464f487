"""Nearest neighbours and regressions use informative inputs, and equal the table on uninformative ones."""

from __future__ import annotations

import builtins
from pathlib import Path

import numpy as np
import pytest

from knobctl.data.cache.reader import open_cache
from knobctl.data.errors import KnobctlError
from knobctl.replay.policies.decide import decide
from knobctl.replay.policies.neighbours import LanguageNeighbours, NeighbourIndex
from knobctl.replay.policies.registry import build_baselines
from knobctl.replay.tables import ReplayTables
from knobctl.tests.support.caches import generated_cache, write_array_cache

LATENCY_MS = [20.0, 40.0, 60.0, 130.0]
SPLITS = ["train"] * 120 + ["val"] * 40 + ["test"] * 40


def two_kinds(path: Path, *, reveals: bool, tokens: bool = False) -> tuple[ReplayTables, np.ndarray]:
    """Half of the samples need the high tier; features or tokens reveal which, or are noise. Returns each kind."""
    rng = np.random.default_rng(0)
    kind_S = rng.integers(0, 2, 200)
    accuracy = np.where(kind_S[:, None] == 1, [0.0, 0.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0])
    noise_SD = rng.standard_normal((200, 6))
    noise_SD[:, 0] *= 50.0  # an uninformative column of large values, which would dominate unscaled distances
    feature_SD = noise_SD.copy()
    if reveals:
        feature_SD[:, 1] += 6.0 * kind_S
    token = np.repeat(feature_SD[:, None, None, None], 2, axis=1) if tokens else None
    write_array_cache(
        path,
        accuracy,
        np.tile(LATENCY_MS, (200, 1)),
        splits=SPLITS,
        feature_SD=np.zeros((200, 6)) if tokens else feature_SD,
        token_STPMD=token,
    )
    return ReplayTables.from_cache(open_cache(path)), kind_S


@pytest.mark.parametrize("metric", ["cosine", "standardised"])
def test_the_index_finds_the_nearest_rows(metric: str):
    rng = np.random.default_rng(0)
    row_ND, query_QD = 3.0 + rng.standard_normal((50, 4)), 3.0 + rng.standard_normal((7, 4))
    found_QK = NeighbourIndex(row_ND, metric).nearest(query_QD, 5)
    for query_D, found_K in zip(query_QD, found_QK, strict=True):
        row, query = row_ND - row_ND.mean(axis=0), query_D - row_ND.mean(axis=0)
        if metric == "cosine":
            distance_N = -(row @ query) / np.linalg.norm(row, axis=1)
        else:
            distance_N = np.linalg.norm((row - query) / row_ND.std(axis=0), axis=1)
        assert found_K.tolist() == np.argsort(distance_N)[:5].tolist()


def test_a_column_that_never_varies_in_training_is_ignored():
    row_ND = np.stack([np.arange(1000.0), np.full(1000, 60.3)], axis=1)  # the float32 deviation is not exactly 0
    index = NeighbourIndex(row_ND, "standardised")
    assert index.nearest(np.array([[2.1, -900.0]]), 1).tolist() == [[2]]


def test_neighbours_use_what_the_language_feature_reveals(tmp_path: Path):
    table, kind_S = two_kinds(tmp_path / "c", reveals=True)
    (policy,) = build_baselines(["neighbours"], table)
    rows = table.measured("test")
    setting_N = decide(policy, table, rows, (0,))[:, 0]
    wanted_N = np.where(kind_S[rows] == 1, 2, 0)  # the cheapest setting that answers correctly
    assert (setting_N == wanted_N).mean() > 0.9


def test_on_uninformative_features_neighbours_choose_as_the_table(tmp_path: Path):
    table, _ = two_kinds(tmp_path / "c", reveals=False)
    neighbours, lookup = build_baselines(["table", "neighbours"], table)[::-1]
    rows = table.measured("test")
    agree = (decide(neighbours, table, rows, (0,)) == decide(lookup, table, rows, (0,))).mean()
    assert agree > 0.8


def test_hyperparameters_are_chosen_on_val_and_not_on_test(tmp_path: Path):
    table, _ = two_kinds(tmp_path / "c", reveals=True)
    before = LanguageNeighbours(table)
    table.accuracy_SX[table.measured("test")] = 0.5
    after = LanguageNeighbours(table)
    assert (before.k, before.metric, before.tuning) == (after.k, after.metric, after.tuning)
    table.accuracy_SX[table.measured("val")] = 0.5
    assert LanguageNeighbours(table).tuning != before.tuning


def test_neighbours_over_all_training_samples_equal_the_table(tmp_path: Path):
    table = ReplayTables.from_cache(generated_cache(tmp_path / "c", holes=0.2))
    policy = LanguageNeighbours(table)
    policy.k = len(table.train_samples())
    (lookup,) = build_baselines(["table"], table)
    rows = table.measured("test")
    assert (decide(policy, table, rows, (0, 1, 2)) == decide(lookup, table, rows, (0, 1, 2))).all()


@pytest.mark.parametrize("tuned", [True, False])
@pytest.mark.parametrize("name", ["neighbours_token", "mlp_token"])
def test_policies_on_the_token_use_what_it_reveals(tmp_path: Path, name: str, tuned: bool):
    """Only the token reveals the need, and only (top-k, num_blocks) can be chosen from it.

    Without tokens in `val`, hyperparameters keep their defaults.
    """
    rng = np.random.default_rng(0)
    kind_S = rng.integers(0, 2, 200)
    accuracy = np.where(kind_S[:, None] == 1, [0.0, 1.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0])  # 16 blocks answer correctly
    token = rng.standard_normal((200, 2, 1, 1, 6))
    token[..., 1] += 6.0 * kind_S[:, None, None, None]
    path = write_array_cache(
        tmp_path / "c",
        accuracy,
        np.tile([10.0, 80.0, 300.0, 300.0], (200, 1)),
        splits=SPLITS,
        feature_SD=rng.standard_normal((200, 6)),
        token_STPMD=token,
    )
    table = ReplayTables.from_cache(open_cache(path))
    table.token_present_STPM[table.measured("val")] = tuned
    (policy,) = build_baselines([name], table)
    rows = table.measured("test")
    setting_N = decide(policy, table, rows, (0,))[:, 0]
    assert (setting_N == np.where(kind_S[rows] == 1, 1, 0)).mean() > (0.85 if tuned else 0.75)
    if name == "neighbours_token":
        assert bool(policy.tuning) == tuned


def test_the_language_regression_uses_what_the_feature_reveals(tmp_path: Path):
    table, kind_S = two_kinds(tmp_path / "c", reveals=True)
    (policy,) = build_baselines(["mlp_language"], table)
    rows = table.measured("test")
    setting_N = decide(policy, table, rows, (0,))[:, 0]
    high_N = table.space.value_index_KX[0, setting_N] == 1
    assert (high_N == (kind_S[rows] == 1)).mean() > 0.85


def test_samples_without_a_token_are_left_out_and_a_tier_without_tokens_is_an_error(tmp_path: Path):
    table = ReplayTables.from_cache(generated_cache(tmp_path / "c"))
    rows = table.measured("test")
    table.token_present_STPM[table.train_samples()[::2]] = False
    table.token_present_STPM[rows, 0] = False
    (policy,) = build_baselines(["neighbours_token"], table)
    setting_NM = decide(policy, table, rows, (0, 1))
    tier_NM = table.space.value_index_KX[0, setting_NM]
    assert (tier_NM > 0).all()  # the low tier has no tokens, so it cannot be chosen
    table.token_present_STPM[table.train_samples(), 1] = False  # one tier suffices: Stage1 may choose it
    with pytest.raises(KnobctlError, match="no training sample has a latency token at tier medium"):
        build_baselines(["neighbours_token"], table)
    skipped: list[str] = []
    assert [policy.name for policy in build_baselines(["table", "mlp_token"], table, skipped=skipped)] == ["table"]
    assert "tier medium" in skipped[0]


def test_without_scikit_learn_regressions_name_the_package_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    table, _ = two_kinds(tmp_path / "c", reveals=True)
    real = builtins.__import__

    def absent(name: str, *rest: object) -> object:
        if name.split(".")[0] == "sklearn":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(KnobctlError, match=r"need scikit-learn: pip install 'knobctl\[baselines\]'"):
        build_baselines(["mlp_language"], table)
    assert build_baselines(["neighbours"], table)[0].name == "neighbours"  # needs no optional package
