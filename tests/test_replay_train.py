"""Training end to end on small generated tables: repetition, resuming, seeds, logs, holes, unusual caches, refusals."""

import csv
import json
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from knobctl.controllers.budget_encoder import BudgetEncoder
from knobctl.controllers.checkpoint import WEIGHTS_NAME, Controllers
from knobctl.controllers.two_stage import TwoStagePolicy
from knobctl.data.errors import CacheError, CheckpointError, KnobctlError
from knobctl.data.knobs import KnobSpace
from knobctl.data.protocols import Requests
from knobctl.replay.recipes import CLASSIC, TUNED, TrainConfig, recipe
from knobctl.replay.reward import RewardWeights
from knobctl.replay.tables import _numbered
from knobctl.replay.training import train
from knobctl.replay.training.data import require_trainable
from knobctl.replay.training.inputs import settings_seen
from knobctl.replay.training.train import train_controllers, train_tables
from knobctl.tests.support.caches import make_cache
from knobctl.tests.support.recorded_progress import RecordedProgress
from knobctl.tests.support.replay_inputs import QUICK, SMALL_SPACE, encoder_for, small_generated, tables_of


@pytest.fixture(scope="module")
def tables():
    return tables_of(small_generated(space=SMALL_SPACE))


def quick(**changes):
    return recipe("tuned", **{**QUICK, **changes})


def run(tables, out, config=None, **options):
    return train_tables(tables, encoder_for(tables), out, config or quick(), where="the test's tables", **options)


def weights(path):
    return (path / WEIGHTS_NAME).read_bytes()


def test_the_same_cache_and_seed_give_bit_equal_controllers(tables, tmp_path):
    run(tables, tmp_path / "a")
    run(tables, tmp_path / "b")
    run(tables, tmp_path / "c", quick(seeds=(7,)))
    assert weights(tmp_path / "a") == weights(tmp_path / "b") != weights(tmp_path / "c")


@pytest.mark.parametrize("changes", [{}, {"seeds": (1, 2)}, {"train_budget_encoder": True}, {"estimator": "exact"}])
def test_resuming_after_a_kill_is_bit_equal(tables, tmp_path, monkeypatch, changes):
    config = quick(**changes)
    run(tables, tmp_path / "whole", config)

    class Killed(BaseException):
        pass

    def stop(done):
        if done == 2:
            raise Killed

    monkeypatch.setattr(train, "SAVE_EVERY_S", 0.0)
    with pytest.raises(Killed):
        run(tables, tmp_path / "cut", config, progress=RecordedProgress(stop))
    assert not list((tmp_path / "cut").rglob(WEIGHTS_NAME))
    progress = RecordedProgress()
    run(tables, tmp_path / "cut", config, resume=True, progress=progress)
    assert progress.done == [(3, 4), (4, 4)]
    for path in (tmp_path / "whole").rglob(WEIGHTS_NAME):
        other = tmp_path / "cut" / path.relative_to(tmp_path / "whole")
        assert path.read_bytes() == other.read_bytes()
    logs = [(tmp_path / name / "log.jsonl").read_text() for name in ("whole", "cut")]
    assert logs[0] == logs[1]


def test_resuming_another_run_is_refused_with_the_difference(tables, tmp_path):
    run(tables, tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"config\.lr \(recorded null, now 0\.001\)"):
        run(tables, tmp_path / "out", quick(lr=1e-3), resume=True)
    with pytest.raises(CheckpointError, match="data"):
        run(replace(tables, latency_ms_SX=tables.latency_ms_SX * 2), tmp_path / "out", resume=True)


def test_a_truncated_state_is_refused(tables, tmp_path):
    run(tables, tmp_path / "out")
    state = tmp_path / "out" / "training_state.safetensors"
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="cannot be read"):
        run(tables, tmp_path / "out", resume=True)


def test_each_seed_gets_its_own_checkpoint(tables, tmp_path):
    report = run(tables, tmp_path / "out", quick(seeds=(0, 1, 2)))
    assert [seed.path for seed in report.seeds] == [str(tmp_path / "out" / f"seed-{s}") for s in (0, 1, 2)]
    found = {weights(tmp_path / "out" / f"seed-{s}") for s in (0, 1, 2)}
    assert len(found) == 3
    json.loads(report.to_json())


def test_the_log_has_the_usual_columns(tables, tmp_path):
    run(tables, tmp_path / "out", quick(num_iterations=2, beta=0.1, lr=0.05, warm_start_steps=0))
    with (tmp_path / "out" / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    steps = [row for row in rows if row["reward"]]
    assert [int(row["step"]) for row in steps] == list(range(2, 17, 2))
    for name in ("reward_std", "frac_reward_zero_std", "entropy", "kl", "clip_ratio", "grad_norm", "lr"):
        values = [float(row[name]) for row in steps]
        assert (np.isfinite(values).all() and any(value != 0 for value in values)) or name == "frac_reward_zero_std", (
            name
        )
    evaluated = [row for row in rows if row["val_reward"]]
    assert len(evaluated) == 4
    for row in evaluated:
        terms = [float(value) for name, value in row.items() if name.startswith("val_") and name.endswith("_term")]
        assert sum(terms) == pytest.approx(float(row["val_reward"]), abs=1e-4)


def test_the_gradient_norm_is_logged_before_clipping(tables, tmp_path):
    run(tables, tmp_path / "out", quick(max_grad_norm=1e-6))
    with (tmp_path / "out" / "log.csv").open() as file:
        norms = [float(row["grad_norm"]) for row in csv.DictReader(file) if row["grad_norm"]]
    assert norms
    assert min(norms) > 1e-5


def test_training_improves_the_reward(tables, tmp_path):
    before = run(tables, tmp_path / "a", quick(epochs=1, lr=1e-6, warm_start_steps=0))
    after = run(tables, tmp_path / "b", quick(epochs=60, warm_start_steps=0))
    assert after.seeds[0].val_reward > before.seeds[0].val_reward + 0.05


def test_the_classic_recipe_has_the_original_values():
    assert (CLASSIC.batch_size, CLASSIC.epochs, CLASSIC.lr, CLASSIC.stage1_lr_ratio) == (8, 100, 1e-4, 1.0)
    assert (CLASSIC.weight_decay, CLASSIC.group_size, CLASSIC.scale_rewards) == (1e-5, 5, "group")
    assert (CLASSIC.seeds, CLASSIC.estimator, CLASSIC.entropy_bonus_start, CLASSIC.ema_decay) == ((42,), "grpo", 0, 0)
    assert CLASSIC.epochs_for(15_000) * 15_000 // CLASSIC.batch_size == 187_500


def test_the_default_learning_rate_depends_on_the_number_of_samples():
    rates = [TUNED.lr_for(samples) for samples in (10, 320, 2000, 8000, 100_000)]
    assert rates == pytest.approx([1e-3, 1e-3, 2.5e-3, 5e-3, 5e-3])
    assert replace(TUNED, lr=1e-4).lr_for(10) == 1e-4


def test_a_config_round_trips_and_refuses_invalid_values():
    assert TrainConfig.from_dict(json.loads(json.dumps(TUNED.to_dict()))) == TUNED
    for change in ({"epochs": 0}, {"lr": 0.0}, {"estimator": "magic"}, {"seeds": ()}, {"seeds": (1, 1)}):
        with pytest.raises(KnobctlError, match="training settings"):
            replace(TUNED, **change)
    with pytest.raises(KnobctlError, match="recipe"):
        recipe("nonesuch")


def test_every_setting_has_a_help_text():
    assert [item.name for item in fields(TrainConfig) if not item.metadata.get("help")] == []


def setting_index(tables):
    return {(s.tier, s.insertion_position, s.top_k, s.num_blocks): x for x, s in enumerate(tables.space.settings)}


def choices(controllers, tables, sample_ids, available=None):
    """Every sample under every budget, as (tier, position, top-k, num_blocks) indices and the setting."""
    policy, space = TwoStagePolicy(controllers), tables.space
    budgets = tables.budgets_ms_M
    rows = np.repeat(sample_ids, len(budgets))
    requests = Requests(
        tuple(tables.sample_ids[row] for row in rows),
        ("generated",) * len(rows),
        tables.language_feature_SD[rows],
        np.tile(budgets, len(sample_ids)),
        None if available is None else available[rows],
    )
    tier, position = policy.choose_image(requests)
    budget = np.tile(np.arange(len(budgets)), len(sample_ids))
    token = tables.token_STPMD[rows, tier, position, budget]
    top_k, blocks = policy.choose_compute(requests, tier, position, token)
    values = zip(tier, position, top_k, blocks, strict=True)
    axes = (space.tiers, space.insertion_positions, space.top_k, space.num_blocks)
    return [tuple(axis[i] for axis, i in zip(axes, value, strict=True)) for value in values]


def test_settings_without_outcomes_are_never_chosen(tables, tmp_path):
    accuracy = tables.accuracy_SX.copy()
    gone = [x for x, s in enumerate(tables.space.settings) if s.tier == "high" or s.num_blocks == 4]
    accuracy[:, gone] = np.nan  # no sample has these
    accuracy[::2, 0] = np.nan  # every other sample lacks this one
    holed = replace(tables, accuracy_SX=accuracy)
    progress = RecordedProgress()
    run(holed, tmp_path / "out", progress=progress)
    assert any("no outcome and are masked" in note for note in progress.notes)
    controllers = Controllers.from_pretrained(tmp_path / "out")
    allowed_J, allowed_JA = settings_seen(holed)
    assert allowed_J.tolist() == [True, True, False, False]
    assert torch.equal(controllers.stage2.allowed_JA[allowed_J], allowed_JA[allowed_J])
    test = holed.indices("test")
    features = torch.from_numpy(holed.language_feature_SD[test])
    log_prob = controllers.stage1(features, torch.zeros(len(test), holed.d_model))
    assert not log_prob.exp()[:, ~allowed_J].any()
    for tier, _position, _top_k, num_blocks in choices(controllers, holed, test):
        assert (tier, num_blocks) == ("low", 3)
    available = np.isfinite(accuracy)
    rows = np.repeat(test, len(holed.budgets_ms_M))
    for row, chosen in zip(rows, choices(controllers, holed, test, available), strict=True):
        index = [
            i
            for i, s in enumerate(tables.space.settings)
            if (s.tier, s.insertion_position, s.top_k, s.num_blocks) == chosen
        ]
        assert available[row, index[0]]


def test_a_sample_without_any_outcome_is_an_error(tables, tmp_path):
    accuracy = tables.accuracy_SX.copy()
    accuracy[3] = np.nan
    with pytest.raises(CacheError, match=r"generated/000003.*no setting left"):
        run(replace(tables, accuracy_SX=accuracy), tmp_path / "out")


def test_choices_do_not_depend_on_the_batch(tables, tmp_path):
    run(tables, tmp_path / "out")
    controllers = Controllers.from_pretrained(tmp_path / "out")
    test = tables.indices("test")[:8]
    together = choices(controllers, tables, test)
    alone = [choice for sample in test for choice in choices(controllers, tables, np.array([sample]))]
    assert together == alone


def test_replay_and_the_loaded_controllers_make_the_same_choices(tables, tmp_path):
    """The greedy reward that selected the checkpoint equals that of the loaded policy on `val`."""
    report = run(tables, tmp_path / "out", quick(epochs=20))
    controllers = Controllers.from_pretrained(tmp_path / "out")
    val = tables.indices("val")
    chosen = [setting_index(tables)[choice] for choice in choices(controllers, tables, val)]
    setting = np.array(chosen).reshape(len(val), -1)
    reward = np.take_along_axis(tables.reward_NMX(val), setting[..., None], axis=2)
    assert float(reward.mean()) == pytest.approx(report.seeds[0].val_reward, abs=1e-5)


ODD_SPACES = {
    "seven tiers": KnobSpace(tuple(f"t{i}" for i in range(7)), (1, 2, 3), (1, 4, 16), (8, 16)),
    "one of each": KnobSpace(("only",), (1,), (2,), (3,)),
    "blocks fewer than the position": KnobSpace(("low", "high"), (1, 3), (2, 4), (2, 4)),
}


@pytest.mark.parametrize("name", ODD_SPACES)
def test_other_knob_values_train(tmp_path, name):
    tables = tables_of(small_generated(train=40, val=12, test=12, d_model=12, space=ODD_SPACES[name]))
    run(tables, tmp_path / "out", quick(epochs=2))
    for choice in choices(Controllers.from_pretrained(tmp_path / "out"), tables, tables.indices("test")):
        assert choice in setting_index(tables)


@pytest.mark.parametrize(
    "sizes", [{"train": 7, "val": 1, "test": 2}, {"train": 1, "val": 0, "test": 0}, {"n_budgets": 1}, {"val": 0}]
)
def test_small_and_unbalanced_caches_train(tmp_path, sizes):
    tables = tables_of(small_generated(**{"space": SMALL_SPACE, "d_model": 12, **sizes}))
    report = run(tables, tmp_path / "out", quick(epochs=2))
    assert np.isfinite(report.seeds[0].val_reward)
    assert bool(report.notes) == (sizes.get("val", 1) == 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token_STPMD": None}, "no latency tokens"),
        ({"language_feature_SD": np.zeros((200, 0), np.float32)}, "no language features"),
        ({"latency_ms_SX": np.full((200, 16), np.nan, np.float32)}, "no latency_ms"),
        ({"split_indices": {}}, "no samples in split `train`"),
    ],
)
def test_tables_that_cannot_be_trained_on_are_refused_with_the_reason(tables, change, message):
    with pytest.raises(CacheError, match=message):
        require_trainable(replace(tables, **change), "the cache")


def test_a_cache_on_disk_trains(tmp_path):
    cache = make_cache(tmp_path / "cache", samples=40, d_model=8)
    report = train_controllers(cache, tmp_path / "out", quick(epochs=2))
    assert report.training_samples > 0
    assert Controllers.from_pretrained(tmp_path / "out").cache_fingerprint is not None


def test_a_cache_on_disk_without_tokens_is_refused(tmp_path):
    cache = make_cache(tmp_path / "cache", samples=20, d_model=8, tokens=False)
    with pytest.raises(CacheError, match="no latency tokens"):
        train_controllers(cache, tmp_path / "out", quick())


def test_an_output_directory_with_other_files_is_refused(tables, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(CheckpointError, match=r"thesis\.tex"):
        run(tables, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_cuda_without_a_gpu_is_refused(tables, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(KnobctlError, match="--device cpu"):
        run(tables, tmp_path / "out", quick(device="cuda"))


def test_without_val_an_image_stays_in_one_split(tables, tmp_path):
    train_S = tables.indices("train")
    one = replace(tables, cluster_S=np.zeros_like(tables.cluster_S), split_indices={"train": train_S})
    progress = RecordedProgress()
    run(one, tmp_path, progress=progress)
    assert any("too few images" in note for note in progress.notes)


def test_a_setting_absent_from_training_is_masked_for_samples_that_have_it(tables, tmp_path):
    accuracy_SX = tables.accuracy_SX.copy()
    low = [x for x, setting in enumerate(tables.space.settings) if setting.tier == "low"]
    unseen = [x for x in low if tables.space.settings[x].top_k == 2]
    accuracy_SX[tables.indices("train")[:, None], unseen] = np.nan
    run(replace(tables, accuracy_SX=accuracy_SX), tmp_path)
    policy = TwoStagePolicy(Controllers.from_pretrained(tmp_path))
    available_X = np.ones(len(tables.space.settings), dtype=bool)
    available_X[[x for x in low if x not in unseen]] = (
        False  # of tier `low`, the request has only settings absent from training
    )
    requests = Requests(
        sample_ids=("one",),
        datasets=("generated",),
        language_feature_BD=tables.language_feature_SD[:1],
        budget_ms_B=np.array([float(tables.budgets_ms_M[0])], dtype=np.float32),
        available_BX=available_X[None],
    )
    tier_B, _ = policy.choose_image(requests)
    assert tables.space.tiers[tier_B[0]] == "high"


def test_resuming_with_another_encoder_or_other_images_is_refused(tables, tmp_path):
    run(tables, tmp_path)
    other = replace(tables, cluster_S=tables.cluster_S // 2)
    with pytest.raises(CheckpointError, match="data"):
        run(other, tmp_path, resume=True)
    encoder = BudgetEncoder.from_seed(tables.d_model, 5)
    with pytest.raises(CheckpointError, match="budget_encoder"):
        train_tables(tables, encoder, tmp_path, quick(), where="the test's tables", resume=True)


def test_a_timeout_recorded_as_a_latency_is_refused_naming_the_sample(tables, tmp_path):
    latency_ms_SX = tables.latency_ms_SX.copy()
    latency_ms_SX[tables.indices("train")[4], 3] = 3.4e38
    with pytest.raises(CacheError, match=r"generated/.*3\.4e\+38 ms.*null"):
        run(replace(tables, latency_ms_SX=latency_ms_SX), tmp_path)


@pytest.mark.parametrize(
    "wrong", [{"patience": 0}, {"max_grad_norm": -1.0}, {"reward_weights": RewardWeights(alpha=float("nan"))}]
)
def test_settings_that_prevent_training_are_refused(wrong):
    with pytest.raises(KnobctlError, match=next(iter(wrong)).split("_")[0]):
        quick(**wrong)


@pytest.mark.parametrize("device", ["gpu", "mps"])
def test_an_unknown_device_is_refused(tables, tmp_path, device):
    with pytest.raises(KnobctlError, match=device):
        run(tables, tmp_path, quick(device=device))


def test_seeds_of_an_earlier_run_are_removed(tables, tmp_path):
    run(tables, tmp_path, quick(seeds=(5, 6)))
    run(tables, tmp_path)
    assert not list(tmp_path.glob("seed-*/*.json"))


def test_numbering_long_names_takes_memory_for_one_copy():
    names = ["a", "b\0", "b", "c" * 10_000_000, "a"]
    assert _numbered(names).tolist() == [0, 2, 1, 3, 0]
