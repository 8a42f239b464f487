"""The controllers' sizes, their checkpoint, and what it refuses."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load, save, save_file

from knobctl.cli import main
from knobctl.controllers import budget_encoder
from knobctl.controllers.budget_encoder import BudgetEncoder, read_budget_encoder
from knobctl.controllers.checkpoint import CONFIG_NAME, WEIGHTS_NAME, Controllers
from knobctl.controllers.conditions import Conditions, ModelIdentity
from knobctl.controllers.expected_latency import ExpectedLatency, LatencyError, TypicalRequest
from knobctl.controllers.service_levels import Calibration, ServiceLevel
from knobctl.data.errors import CacheError, CacheMismatch, CheckpointError, KnobctlError
from knobctl.data.knobs import KnobSpace
from knobctl.data.plans import ImportanceScores
from knobctl.data.tasks import Task

CONDITIONS = Conditions(
    importance=ImportanceScores((None, 0.3, 0.1, None), std=(None, 0.1, 0.1, None), runs=3, source="measured"),
    prompt_template=" User: {style: }{question} Assistant:",
    tasks={"toy": Task("exact_match", 4, "vqa2", "Answer in one word.")},
    device={"type": "cpu", "name": "Xeon", "threads": 1},
    latency_mode="blockwise",
    latency_statistic="median",
    runs=5,
)
SPACE = KnobSpace(("low", "high"), (1, 2), (2, 4), (3, 4))
MODEL = ModelIdentity(
    "toy", d_model=8, n_blocks=4, native_top_k=4, fingerprint="f" * 64, dtype="float32", family="molmoe"
)
CALIBRATION = Calibration(0.25, (ServiceLevel(0.9, 1.1, 400, 390), ServiceLevel(0.99, None, 400, 380)))


@pytest.fixture
def controllers():
    made = Controllers.untrained(SPACE, MODEL, (10.0, 20.0), BudgetEncoder.from_seed(8, 1))
    generator = torch.Generator().manual_seed(0)
    for module in (made.stage1, made.stage2):
        module.head.reset(generator, head_gain=1.0)
    made.settings, made.cache_fingerprint = {"lr": 0.5}, "c" * 64
    made.conditions, made.expected_latency = CONDITIONS, expected_latency()
    made.calibration = CALIBRATION
    return made


def expected_latency():
    """1 ms per 10 visual tokens, 10 ms more in each next setting; the last setting is unknown."""
    made = ExpectedLatency(
        SPACE, ["toy"], ["vision_tokens"], LatencyError(5, 80, 0.02, 0.1), {"toy": TypicalRequest(150.0, 2.5)}
    )
    made.offset_ms_GX[0] = 10.0 * torch.arange(1, 17)
    made.vision_ms_X.fill_(0.1)
    made.least_ms_X.fill_(5.0)
    made.known_X[:-1] = True
    return made


def test_parameter_counts_at_the_full_models_width():
    made = Controllers.untrained(
        KnobSpace(), ModelIdentity("full", 2048, 16, 8), (100.0,), BudgetEncoder.from_seed(2048, 0)
    )
    counts = made.parameter_counts()
    assert 50_000 <= counts["stage1"] <= 100_000
    assert 10_000 <= counts["stage2"] <= 30_000
    assert 4_000_000 <= counts["budget_encoder"] <= 8_000_000
    assert counts["frozen_buffers"] > 0


def test_loading_returns_what_was_saved(controllers, tmp_path):
    controllers.save_pretrained(tmp_path)
    loaded = Controllers.from_pretrained(tmp_path)
    for name, tensor in controllers._tensors().items():
        assert torch.equal(tensor, loaded._tensors()[name]), name
    assert (loaded.space, loaded.model, loaded.budgets_ms) == (SPACE, MODEL, (10.0, 20.0))
    assert (loaded.settings, loaded.cache_fingerprint) == ({"lr": 0.5}, "c" * 64)
    assert (loaded.conditions, loaded.calibration) == (CONDITIONS, CALIBRATION)
    assert (loaded.expected_latency.inputs, loaded.expected_latency.held_out) == (
        ("vision_tokens",),
        LatencyError(5, 80, 0.02, 0.1),
    )
    assert loaded.expected_latency.typical == {"toy": TypicalRequest(150.0, 2.5)}
    assert sorted(path.name for path in tmp_path.iterdir()) == [CONFIG_NAME, WEIGHTS_NAME]


def test_expected_latencies_follow_tokens_and_stay_missing_where_nothing_was_measured(controllers, tmp_path):
    controllers.save_pretrained(tmp_path)
    loaded = Controllers.from_pretrained(tmp_path).expected_latency
    expected_BX = loaded.expected_ms(["toy", "toy"], np.array([[100, 400], [-900, 400]]), np.array([np.nan, 7]))
    np.testing.assert_allclose(expected_BX[0, :8], 10.0 * np.arange(1, 9) + 10)  # 100 visual tokens in the low tier
    np.testing.assert_allclose(expected_BX[0, 8:15], 10.0 * np.arange(9, 16) + 40)
    assert np.isnan(expected_BX[:, 15]).all()
    assert expected_BX[1, 0] == 5.0  # never below the lowest latency in training
    assert np.isnan(loaded.expected_ms(["toy"], np.array([[np.nan, 400]]), np.array([7]))[0, :8]).all()
    with pytest.raises(KnobctlError, match=r"dataset 'other'.* trained on toy"):
        loaded.expected_ms(["other"], np.array([[100, 400]]), np.array([7]))


def test_controllers_of_a_cache_without_what_answering_needs_say_what_is_missing(controllers):
    controllers.require_answerable("c")
    controllers.conditions = Conditions(tasks={"toy": None})
    controllers.expected_latency = None
    with pytest.raises(CheckpointError, match=r"c cannot answer .*importance scores, .*limit of toy, expected laten"):
        controllers.require_answerable("c")


def test_a_trained_budget_encoder_is_saved_beside_the_cached_one(controllers, tmp_path):
    controllers.stage1_budget_encoder = BudgetEncoder.from_seed(8, 2)
    controllers.save_pretrained(tmp_path)
    loaded = Controllers.from_pretrained(tmp_path)
    budget = torch.tensor([15.0])
    torch.testing.assert_close(loaded.budget_encoder(budget), BudgetEncoder.from_seed(8, 1)(budget))
    torch.testing.assert_close(loaded.stage1_budget_encoder(budget), BudgetEncoder.from_seed(8, 2)(budget))


def fits(controllers, **changes):
    kind = {
        "space": SPACE,
        "model": replace(MODEL, name="other"),
        "encoder": BudgetEncoder.from_seed(8, 1),
    }
    controllers.check_fits("cache X", **{**kind, **changes})


def test_controllers_fit_other_caches_of_the_same_kind(controllers):
    fits(controllers)
    fits(controllers, model=replace(MODEL, fingerprint=None))
    fits(controllers, encoder=None)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"space": KnobSpace(("low", "high"), (1, 2), (2, 4), (2, 4))}, r"\[3, 4\].*cache X.*\[2, 4\]"),
        ({"model": replace(MODEL, d_model=9)}, "d_model 8.*cache X.*d_model 9"),
        ({"model": replace(MODEL, n_blocks=5)}, "n_blocks 4.*cache X.*n_blocks 5"),
        ({"model": replace(MODEL, native_top_k=9)}, "native_top_k.*cache X.*native_top_k 9"),
        ({"model": replace(MODEL, fingerprint="e" * 64)}, "ffff.*cache X.*eeee"),
        ({"encoder": BudgetEncoder.from_seed(8, 2)}, "budget encoder .*cache X"),
    ],
)
def test_a_mismatch_is_refused_and_names_both_sides(controllers, change, named):
    with pytest.raises(CacheMismatch, match=named):
        fits(controllers, **change)


def rewrite(directory, change):
    """Changes the JSON."""
    path = directory / CONFIG_NAME
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def replace_weights(directory, tensors):
    """Writes other weights and their digest."""
    (directory / WEIGHTS_NAME).write_bytes(save(tensors))
    digest = hashlib.sha256((directory / WEIGHTS_NAME).read_bytes()).hexdigest()
    rewrite(directory, lambda record: record.update(weights_sha256=digest))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.update(format="pickle"), "not a controllers' checkpoint"),
        (lambda r: r.update(version=1), "version 1, .* reads 2: .*`knobctl train CACHE --out"),
        (lambda r: r.update(version=3), "version 3, .* reads 2: upgrade"),
        (lambda r: r.update(version=True), "version"),
        (lambda r: r.pop("conditions"), "conditions"),
        (lambda r: r["conditions"].update(importance={"scores": [1.0]}), "importance.*scores 1 blocks.*4"),
        (lambda r: r["conditions"].update(importance={"scores": [None, None, 1, 1]}), "importance"),
        (lambda r: r["conditions"].update(tasks=["toy"]), "tasks"),
        (lambda r: r["conditions"]["tasks"]["toy"].update(max_new_tokens=0), "tasks.toy.max_new_tokens"),
        (lambda r: r["conditions"]["tasks"]["toy"].update(style=3), "tasks.toy.style"),
        (lambda r: r["conditions"].update(device="cpu"), "device"),
        (lambda r: r["expected_latency"].update(datasets=[]), "expected_latency.datasets"),
        (lambda r: r["expected_latency"].update(datasets=["a", "b"]), "shape"),
        (lambda r: r["expected_latency"].update(datasets=[str(n) for n in range(2000)]), "datasets"),
        (lambda r: r["expected_latency"].update(inputs=["answer"]), "inputs"),
        (lambda r: r.update(expected_latency=None), "expected_latency.* unknown"),
        (lambda r: r.update(calibration=[0.9]), "calibration"),
        (lambda r: r["calibration"].update(controllers_ms=-1.0), "calibration.controllers_ms"),
        (lambda r: r["calibration"]["levels"][0].update(level=0.8), "must be one of 0.9, 0.95, 0.99"),
        (lambda r: r["calibration"]["levels"][0].update(budget_factor="1"), "budget_factor"),
        (lambda r: r["model"].update(d_model=10**9), "d_model"),
        (lambda r: r["model"].update(d_model=True), "d_model"),
        (lambda r: r["model"].update(d_model=16), "shape"),
        (lambda r: r["knobs"].update(top_k=list(range(1, 60_000))), "combinations"),
        (lambda r: r["knobs"].update(tiers=[]), "tiers"),
        (lambda r: r.pop("knobs"), "knobs"),
        (lambda r: r.update(budgets_ms=[-1]), "budgets_ms"),
        (lambda r: r.update(settings=[1]), "settings"),
        (lambda r: r.update(weights_sha256="0" * 64), "sha256"),
    ],
)
def test_untrusted_json_is_refused(controllers, tmp_path, change, message):
    controllers.save_pretrained(tmp_path)
    rewrite(tmp_path, change)
    with pytest.raises(CheckpointError, match=message):
        Controllers.from_pretrained(tmp_path)


def test_untrusted_weights_are_refused(controllers, tmp_path):
    controllers.save_pretrained(tmp_path)
    good = load((tmp_path / WEIGHTS_NAME).read_bytes())
    name = "stage1.head.weights.0"
    for tensors, message in (
        ({k: v for k, v in good.items() if k != name}, name),
        ({**good, "extra": torch.zeros(1)}, "extra"),
        ({**good, name: torch.zeros(3, 3)}, "shape"),
        ({**good, name: torch.full_like(good[name], torch.nan)}, "not finite"),
        ({**good, name: good[name].long()}, "int64"),
        ({**good, "expected_latency.least_ms_X": torch.zeros(16)}, "least_ms_X"),
        ({**good, "expected_latency.vision_ms_X": torch.full((16,), -1.0)}, "vision_ms_X"),
    ):
        replace_weights(tmp_path, tensors)
        with pytest.raises(CheckpointError, match=message):
            Controllers.from_pretrained(tmp_path)
    (tmp_path / WEIGHTS_NAME).write_bytes(b"\x80\x04cposix\nsystem\n")
    rewrite(tmp_path, lambda record: record.pop("weights_sha256"))
    with pytest.raises(CheckpointError, match="cannot be read"):
        Controllers.from_pretrained(tmp_path)


def test_a_half_written_or_absent_checkpoint_is_refused(controllers, tmp_path):
    controllers.save_pretrained(tmp_path / "whole")
    (tmp_path / "whole" / CONFIG_NAME).unlink()
    with pytest.raises(CheckpointError, match="half-written"):
        Controllers.from_pretrained(tmp_path / "whole")
    with pytest.raises(CheckpointError, match="no directory"):
        Controllers.from_pretrained(tmp_path / "absent")


def test_a_caches_budget_encoder_is_read_or_refused(tmp_path, monkeypatch):
    path = tmp_path / "budget_encoder.safetensors"
    save_file(BudgetEncoder.from_seed(8, 3).state_dict(), path)
    budget = torch.tensor([15.0])
    assert torch.equal(read_budget_encoder(path, 8)(budget), BudgetEncoder.from_seed(8, 3)(budget))
    with pytest.raises(CheckpointError, match=r"budget_encoder.safetensors: .*shape.* width 9 .*make the cache again"):
        read_budget_encoder(path, 9)
    with pytest.raises(CacheError, match="shape"):
        read_budget_encoder(path, 9, error=CacheError)
    monkeypatch.setattr(budget_encoder, "MAX_FILE_BYTES", path.stat().st_size - 1)
    with pytest.raises(CheckpointError, match="larger than"):
        read_budget_encoder(path, 8)


@pytest.mark.parametrize("knobs", [{"insertion_positions": 5}, {"insertion_positions": None}, {"tier_crops": 5}])
def test_untrusted_knobs_are_refused_naming_the_knob(controllers, tmp_path, knobs):
    controllers.save_pretrained(tmp_path)
    record = json.loads((tmp_path / CONFIG_NAME).read_text())
    record["knobs"] |= knobs
    (tmp_path / CONFIG_NAME).write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match=next(iter(knobs))):
        Controllers.from_pretrained(tmp_path)


def test_a_knob_with_very_many_values_is_refused_before_anything_is_built(controllers, tmp_path):
    controllers.save_pretrained(tmp_path)
    record = json.loads((tmp_path / CONFIG_NAME).read_text())
    record["knobs"] |= {"insertion_positions": list(range(1, 16001)), "top_k": [2], "num_blocks": [20000]}
    (tmp_path / CONFIG_NAME).write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match=r"\[2, 16000, 1, 1\] knob values.*bytes"):
        Controllers.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.full((8, 2048), 1e300, dtype=torch.float64), "beyond"),
        (torch.zeros(8, 2048).to(torch.float8_e4m3fn), "float8"),
    ],
)
def test_weights_of_other_number_types_are_refused(tmp_path, tensor, message):
    weights = BudgetEncoder.from_seed(8, 0).state_dict()
    save_file({**weights, "layers.1.weight": tensor}, tmp_path / "encoder.safetensors")
    with pytest.raises(CheckpointError, match=message):
        read_budget_encoder(tmp_path / "encoder.safetensors", 8)


def test_inspect_checks_and_shows_a_checkpoint(controllers, tmp_path):
    controllers.save_pretrained(tmp_path)
    record = json.loads(CliRunner().invoke(main, ["inspect", str(tmp_path), "--json"]).stdout)
    assert record["model"]["fingerprint"] == "f" * 64
    assert record["expected_latency"]["held_out"]["median"] == 0.02
    assert (record["cannot_answer"], record["tasks"]["toy"]["max_new_tokens"]) == (None, 4)
    assert "toy" in CliRunner().invoke(main, ["inspect", str(tmp_path)]).stdout
    rewrite(tmp_path, lambda r: r["conditions"]["tasks"]["toy"].update(metric=1))
    refused = CliRunner().invoke(main, ["inspect", str(tmp_path)])
    assert (refused.exit_code, "conditions.tasks.toy.metric" in refused.stderr) == (1, True)


def test_of_several_seeds_one_must_be_named(controllers, tmp_path):
    for seed in (0, 1):
        (tmp_path / f"seed-{seed}").mkdir()
        controllers.save_pretrained(tmp_path / f"seed-{seed}")
    with pytest.raises(CheckpointError, match=r"holds several controllers: name one, such as .*seed-0"):
        Controllers.from_pretrained(tmp_path)
