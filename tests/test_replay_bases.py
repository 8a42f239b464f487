"""The frozen input bases: ridge regression from sums, cross-fitting, and equal features in training and deployment."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from knobctl.controllers.bases import CLAMP, TokenBasis, waves_of
from knobctl.data.cache.reader import open_cache
from knobctl.data.generated.cache import write_generated
from knobctl.data.generated.population import GeneratedConfig, generate
from knobctl.replay.bases.budget import budget_waves, fit_budget_basis
from knobctl.replay.bases.folds import fold_of_samples
from knobctl.replay.bases.fourier import draw_waves, leading_directions
from knobctl.replay.bases.language import fit_language_basis
from knobctl.replay.bases.ridge import FoldSums, fit_ridge
from knobctl.replay.bases.targets import principal_targets
from knobctl.replay.bases.token import fit_token_basis
from knobctl.replay.recipes import recipe
from knobctl.replay.tables import ReplayTables
from knobctl.replay.training.data import prepare_training
from knobctl.replay.training.inputs import project_tokens
from knobctl.tests.support.replay_inputs import SMALL_SPACE, encoder_for, small_generated, tables_of


def sums_of(x_RD, y_RQ, folds=5):
    sums = FoldSums.zeros(folds, x_RD.shape[1], y_RQ.shape[1])
    for fold in range(folds):
        sums.add(fold, x_RD[fold::folds], y_RQ[fold::folds])
    return sums


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_ridge_solves_the_normal_equations():
    x_RD, y_RQ = noise(200, 6), noise(200, 2, seed=1)
    fit = fit_ridge(sums_of(x_RD, y_RQ), penalties=(0.5,))
    xx_DD = x_RD.T @ x_RD
    damped_DD = xx_DD + 0.5 * xx_DD.diagonal().mean() * torch.eye(6)
    torch.testing.assert_close(damped_DD @ fit.weight_DQ, x_RD.T @ y_RQ, rtol=1e-4, atol=1e-3)


def test_held_out_weights_do_not_depend_on_the_folds_own_rows():
    x_RD, y_RQ = noise(50, 4), noise(50, 1, seed=1)
    changed_RQ = y_RQ.clone()
    changed_RQ[2::5] += 100.0
    fits = [fit_ridge(sums_of(x_RD, y), penalties=(0.1,)) for y in (y_RQ, changed_RQ)]
    torch.testing.assert_close(fits[0].weight_KDQ[2], fits[1].weight_KDQ[2])
    assert not torch.allclose(fits[0].weight_KDQ[1], fits[1].weight_KDQ[1])


def test_explained_variance_is_measured_on_held_out_rows():
    x_RD = noise(400, 3)
    known_R1 = x_RD[:, :1] * 2
    y_RQ = torch.cat([known_R1, noise(400, 1, seed=5), torch.zeros(400, 1)], dim=1)
    explained = fit_ridge(sums_of(x_RD, y_RQ)).explained_Q
    assert float(explained[0]) > 0.999
    assert float(explained[1]) < 0.02
    assert float(explained[2]) == 0.0


def test_weights_are_shrunk_towards_the_start():
    x_RD, y_RQ = noise(60, 4), noise(60, 1, seed=1)
    start = fit_ridge(sums_of(noise(60, 4, seed=7), noise(60, 1, seed=8)), penalties=(0.1,))
    near = fit_ridge(sums_of(x_RD, y_RQ), start, penalties=(1e9,))
    torch.testing.assert_close(near.weight_DQ, start.weight_DQ, rtol=1e-4, atol=1e-6)


def test_samples_of_one_image_share_a_fold():
    cluster = np.array([0, 0, 1, 1, 2, 3, 3, 3, 4, 5])
    fold = fold_of_samples(cluster, 5, seed=0)
    for image in set(cluster.tolist()):
        assert len(set(fold[cluster == image].tolist())) == 1
    assert set(fold.tolist()) == set(range(5))


def test_principal_targets_count_a_hole_as_the_columns_mean():
    value = torch.tensor([[1.0, 0.0], [torch.nan, 0.0], [3.0, 0.0], [2.0, 0.0]])
    target = principal_targets(value, 1)
    assert abs(float(target[1, 0])) < 1e-6
    assert float(target[2, 0]) == pytest.approx(-float(target[0, 0]))


def test_the_budget_basis_interpolates_between_the_grids_budgets():
    budgets = torch.tensor([50.0, 100.0, 200.0, 400.0])
    tables = tables_of(small_generated(space=SMALL_SPACE, d_model=64))
    encoder = encoder_for(tables)
    basis = fit_budget_basis(encoder, budgets, 16)
    between = torch.tensor([60.0, 140.0, 330.0])
    wanted = budget_waves(between, 50.0, 400.0) - budget_waves(budgets, 50.0, 400.0).mean(dim=0)
    got = basis(encoder(between))[:, :8] * 0.7
    got, wanted = got - got.mean(dim=0), wanted - wanted.mean(dim=0)
    assert float((got - wanted)[:, :4].abs().max()) < 0.15


def test_a_feature_without_predictive_value_fades():
    generated = small_generated(space=SMALL_SPACE, train=300)
    needs_SD = torch.cat([torch.from_numpy(generated.need_SL), noise(len(generated.sample_ids), 20)], dim=1)
    seeing = tables_of(generated, language_feature_SD=needs_SD.numpy())
    shuffled = torch.randperm(len(needs_SD), generator=torch.Generator().manual_seed(0))
    guessing = tables_of(generated, language_feature_SD=needs_SD[shuffled].numpy())
    fold = fold_of_samples(seeing.cluster_S[seeing.indices("train")], 5, 0)
    explained = [float(fit_language_basis(tables, fold, 48).explained_F.max()) for tables in (seeing, guessing)]
    assert explained[0] > 0.2
    assert explained[1] < 0.05


def test_smooth_features_capture_non_linear_dependence():
    generated = small_generated(space=SMALL_SPACE, train=600, d_model=4)
    detail_S1 = torch.from_numpy(generated.need_SL[:, :1])
    cosine_S1 = (3.0 * detail_S1).cos()  # the input determines the need up to its sign and a period
    feature_SD = torch.cat([3.0 * cosine_S1, (3.0 * detail_S1).sin() * 3.0, noise(len(detail_S1), 2)], dim=1)
    accuracy_SX = torch.from_numpy(generated.accuracy_SX).clone()
    accuracy_SX[:, :] = (cosine_S1.square() > 0.5).float()  # even in both inputs: invisible to a linear projection
    tables = tables_of(generated, language_feature_SD=feature_SD.numpy(), accuracy_SX=accuracy_SX.numpy())
    fold = fold_of_samples(tables.cluster_S[tables.indices("train")], 5, 0)
    fitted = fit_language_basis(tables, fold, 48)
    linear, smooth = fitted.explained_F[:32], fitted.explained_F[32:]
    assert float(linear.max()) < 0.1
    assert float(smooth.max()) > 0.6
    features = fitted.whole(feature_SD[:500])
    assert float(features[:, 32:].std(dim=0).max()) == pytest.approx(1.0, abs=0.2)


def test_directions_that_distinguish_budgets_are_left_out():
    x_RD = noise(300, 6) * torch.tensor([10.0, 5.0, 1.0, 1.0, 1.0, 1.0])
    budget_BD = torch.tensor([[1.0, 0, 0, 0, 0, 0], [-1.0, 0, 0, 0, 0, 0]])
    found = leading_directions(x_RD.T @ x_RD, 300, budget_BD)
    assert abs(float(found.vector_DC[1, 0])) > 0.99
    assert float(found.vector_DC[0].abs().max()) < 1e-3
    assert float(found.variance_C[0]) == pytest.approx(25.0, rel=0.2)


def test_waves_approximate_a_kernel():
    variance_C = torch.ones(32)
    wave_CW, phase_W = draw_waves(variance_C, 8192)
    x_BC = noise(40, 32)
    feature_BW = waves_of(x_BC, wave_CW, phase_W)
    leading_BB, all_BB = torch.cdist(x_BC[:, :8], x_BC[:, :8]).square(), torch.cdist(x_BC, x_BC).square()
    wanted_BB = (torch.exp(-leading_BB / 32) + torch.exp(-all_BB / 128)) / 2
    got_BB = feature_BW @ feature_BW.T / 4096
    assert float((got_BB - wanted_BB).abs().max()) < 0.08


def test_projection_and_deployment_give_the_same_token_features():
    tables = tables_of(small_generated(space=SMALL_SPACE, d_model=12))
    basis = TokenBasis(12, 48, tiers=2, positions=2, waves=20)
    basis.projection_PDF.copy_(noise(2, 12, 48) / 12)
    basis.offset_TPF.copy_(noise(2, 2, 48, seed=1))
    basis.direction_PDC.copy_(noise(2, 12, 32, seed=2) / 12)
    basis.centre_TPC.copy_(noise(2, 2, 32, seed=3))
    basis.wave_PCW.copy_(noise(2, 32, 20, seed=4) / 6)
    basis.smooth_PWF.copy_(noise(2, 20, 48, seed=5))
    samples = np.array([3, 5])
    projected = project_tokens(tables, samples, basis)
    for row, sample in enumerate(samples):
        for pair in range(4):
            tier, position = torch.tensor([pair // 2]), torch.tensor([pair % 2])
            token = torch.from_numpy(tables.token_STPMD[sample, pair // 2, pair % 2, 1:2])
            torch.testing.assert_close(basis(token, tier, position)[0], projected[row, pair, 1], rtol=1e-4, atol=1e-5)
    assert float(projected.abs().max()) <= CLAMP


def test_a_missing_token_is_masked_and_never_read():
    generated = small_generated(space=SMALL_SPACE)
    token, present = generated.token_STPMD.copy(), np.ones(generated.token_STPMD.shape[:4], dtype=bool)
    token[4, 1, 0], present[4, 1, 0] = np.nan, False
    tables = tables_of(generated, token_STPMD=token, token_present_STPM=present)
    train = prepare_training(tables, encoder_for(tables), recipe("tuned")).inputs["train"]
    assert train.holes == 4  # the four settings of that tier and position
    assert train.allowed_NMJ[4, 0].tolist() == [True, True, False, True]
    assert bool(torch.isfinite(train.token_NJMF).all())


def test_generated_data_is_reproducible_and_its_cache_reads_back(tmp_path):
    config = GeneratedConfig(10, 3, 3, d_model=8, n_budgets=2, hole_share=0.1, space=SMALL_SPACE, seed=3)
    first, second = generate(config), generate(config)
    np.testing.assert_array_equal(first.token_STPMD, second.token_STPMD)
    mapped = generate(config, tmp_path / "tokens.float16")
    assert isinstance(mapped.token_STPMD, np.memmap)
    np.testing.assert_array_equal(mapped.token_STPMD, first.token_STPMD)
    np.testing.assert_array_equal(mapped.accuracy_SX, first.accuracy_SX)
    write_generated(first, tmp_path / "cache")
    tables = ReplayTables.from_cache(open_cache(tmp_path / "cache"))
    np.testing.assert_array_equal(tables.accuracy_SX, first.accuracy_SX)
    np.testing.assert_array_equal(tables.latency_ms_SX, first.latency_ms_SX)
    np.testing.assert_array_equal(np.asarray(tables.token_STPMD), first.token_STPMD)
    assert [len(tables.indices(split)) for split in ("train", "val", "test")] == [10, 3, 3]


def test_an_outlier_in_one_dimension_does_not_spoil_the_others():
    tables = tables_of(small_generated(space=SMALL_SPACE))
    train_S = tables.indices("train")
    token_STPMD = tables.token_STPMD.copy()
    token_STPMD[..., 0] = 0.0
    fold_S = fold_of_samples(tables.cluster_S[train_S], 5, 0)
    plain = fit_token_basis(replace(tables, token_STPMD=token_STPMD), fold_S, 30, 1, 0, moment_samples=40)
    odd_STPMD = token_STPMD.copy()
    odd_STPMD[train_S[1], ..., 0] = 1.0  # not among the 40 samples that the spread is computed from
    odd = fit_token_basis(replace(tables, token_STPMD=odd_STPMD), fold_S, 30, 1, 0, moment_samples=40)
    assert plain.explained_F.sum() > 0.1
    torch.testing.assert_close(odd.explained_F, plain.explained_F, rtol=0.1, atol=0.02)
