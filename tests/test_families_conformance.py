"""A model is accepted by its behaviour: a sound one passes every check, and each check refuses one that breaks it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from knobctl.cli import main
from knobctl.data.errors import CheckpointError
from knobctl.precompute.models.checks import ModelRefused
from knobctl.precompute.models.loading import load_model
from knobctl.precompute.models.transformers_moe.backbone import TransformersBackbone
from knobctl.precompute.models.transformers_moe.block_runner import BlockRunner
from knobctl.precompute.models.transformers_moe.conformance import check_model
from knobctl.tests.support.tiny_families import FAMILIES, random_model, write_family
from knobctl.tests.support.tiny_tokenizer import write_tokenizer

CHECKS = ("native plan", "lower top-k", "rows", "skipped block", "resume", "probe", "no trace")


@pytest.fixture(scope="module")
def build(tmp_path_factory) -> Callable[..., Any]:
    """Makes a family's tiny model, with changes of its text config."""

    def make(name: str, **text: object) -> Any:
        family = FAMILIES[name]
        directory = tmp_path_factory.mktemp("ids")
        ids = write_tokenizer(directory, family.special, chat_template="", attributes=family.attributes)
        return random_model(family.config(ids, text))

    return make


def prompt() -> dict[str, Tensor]:
    ids = torch.randint(30, 90, (1, 23), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def checked(model: Any) -> tuple[Any, ...]:
    return check_model(BlockRunner(model), prompt(), text_ids=[40, 41, 42], name="tiny")


def refusal(model: Any) -> ModelRefused:
    """Returns why a model is refused."""
    with pytest.raises(ModelRefused) as refused:
        checked(model)
    return refused.value


Forward = Callable[..., Tensor]


def change_layer(model: Any, index: int, change: Callable[..., Any]) -> None:
    """Makes `change(original forward, hidden, **arguments)` the forward function of the class of one layer."""
    layer = model.get_decoder().layers[index]

    class Changed(type(layer)):
        def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            return change(super().forward, hidden_states, *args, **kwargs)

    layer.__class__ = Changed


@pytest.mark.parametrize("name", ["qwen3_vl_moe", "qwen3_5_moe", "gemma4", "glm4v_moe"])
def test_a_sound_model_passes_every_check(build, name):
    checks = checked(build(name))
    assert tuple(check.name for check in checks) == CHECKS
    assert all(check.passed for check in checks)


def test_a_model_that_does_more_after_its_layers_fails_the_native_plan(build):
    model = build("qwen3_vl_moe")
    text = model.get_decoder()
    forward = type(text).forward

    class Louder(type(text)):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            output = forward(self, *args, **kwargs)
            if output.last_hidden_state.shape[1] > 2:  # not when the head is looked for
                output.last_hidden_state = output.last_hidden_state * 2
            return output

    text.__class__ = Louder
    assert "check `native plan`" in str(refusal(model))
    assert "logits differ" in str(refusal(model))


def test_a_block_that_ignores_its_top_k_is_named(build):
    model = build("qwen3_vl_moe")
    router = model.get_decoder().layers[3].mlp.gate
    forward = type(router).forward

    class Stubborn(type(router)):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            asked, self.top_k = self.top_k, 4
            try:
                return forward(self, *args, **kwargs)
            finally:
                self.top_k = asked

    router.__class__ = Stubborn
    message = str(refusal(model))
    assert "check `lower top-k`" in message
    assert "block 3" in message


def test_a_block_that_depends_on_the_number_of_rows_is_named(build):
    model = build("qwen3_vl_moe")

    def change(run: Forward, hidden: Tensor, *args: Any, **more: Any) -> Tensor:
        return run(hidden, *args, **more) * (1 if len(hidden) == 1 else 1.01)

    change_layer(model, 2, change)
    message = str(refusal(model))
    assert "check `rows`" in message
    assert "block 2" in message


def test_a_block_that_hands_something_to_the_next_cannot_be_skipped(build):
    model = build("qwen3_vl_moe")
    handed: list[Tensor] = []

    def give(run: Forward, hidden: Tensor, *args: Any, **more: Any) -> Tensor:
        handed[:] = [hidden[:1]]
        return run(hidden, *args, **more)

    change_layer(model, 2, give)
    change_layer(model, 3, lambda run, hidden, *args, **more: run(hidden, *args, **more) + 0.1 * handed[0])
    message = str(refusal(model))
    assert "check `skipped block`" in message
    assert "block 2" in message


def test_a_block_that_remembers_its_last_call_cannot_be_resumed(build):
    model = build("qwen3_vl_moe")
    layer, seen = model.get_decoder().layers[1], [4]

    def change(run: Forward, hidden: Tensor, *args: Any, **more: Any) -> Tensor:
        seen.append(layer.mlp.gate.top_k)
        return run(hidden, *args, **more) + (1e-3 if seen[-2:] == [1, 4] else 0)

    change_layer(model, 1, change)
    message = str(refusal(model))
    assert "check `resume`" in message
    assert "block 1" in message


def test_a_block_that_mixes_rows_cannot_read_probes(build):
    model = build("qwen3_vl_moe")
    change_layer(model, 2, lambda run, hidden, *args, **more: run(hidden, *args, **more) + 0.1 * hidden.mean(dim=0))
    message = str(refusal(model))
    assert "check `probe`" in message
    assert "block 2" in message


def test_a_model_that_the_checks_change_is_refused(build):
    model = build("qwen3_vl_moe")
    generate, calls = model.generate, []

    def generate_and_drift(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            model.lm_head.weight.mul_(1.001)
        return generate(*args, **options)

    model.generate = generate_and_drift
    assert "check `no trace`" in str(refusal(model))


def test_a_model_whose_layers_return_tuples_is_refused(build):
    model = build("qwen3_vl_moe")
    change_layer(model, 2, lambda run, hidden, *args, **more: (run(hidden, *args, **more), None))
    refusal(model)
    with torch.inference_mode():
        runner = BlockRunner(model)
        embedded = runner.embed(prompt())
        positions = runner.positions(embedded, 0, embedded.length)
        with pytest.raises(CheckpointError, match="layer 2, Changed, returns tuple"):
            runner.run_block(2, embedded.hidden_1SD, top_k=4, positions=positions)


def test_blocks_that_share_keys_and_values_are_refused(build):
    with pytest.raises(CheckpointError, match="use the keys and values of other blocks"):
        BlockRunner(build("gemma4", num_kv_shared_layers=2))


def test_one_expert_per_token_leaves_no_lower_top_k(build):
    assert "block 0 uses one expert per token" in str(refusal(build("qwen3_vl_moe", num_experts_per_tok=1)))


def test_a_model_without_experts_is_refused(build):
    with pytest.raises(CheckpointError, match="no router"):
        BlockRunner(build("qwen3_vl_moe", mlp_only_layers=[0, 1, 2, 3, 4]))


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return write_family("qwen3_vl_moe", tmp_path / "model")


def test_a_model_is_checked_once_for_each_fingerprint(checkpoint, monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(TransformersBackbone, "check", lambda backbone: calls.append(backbone.geometry.fingerprint))
    for _ in range(2):
        load_model(str(checkpoint), device="cpu")
    assert len(calls) == 2  # `check` alone remembers that a model has passed
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    load_model(str(checkpoint), device="cpu")
    monkeypatch.setattr(TransformersBackbone, "check", lambda backbone: calls.append(backbone.geometry.fingerprint))
    load_model(str(checkpoint), device="cpu")
    assert len(calls) == 2
    other = write_family("qwen3_vl_moe", tmp_path / "other", seed=5)
    load_model(str(other), device="cpu")
    assert len(calls) == 3
    assert calls[0] != calls[2]


def test_check_model_prints_geometry_and_checks(checkpoint):
    result = CliRunner().invoke(main, ["check-model", str(checkpoint), "--device", "cpu", "--json"])
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record["geometry"]["native_top_k"] == [4, 4, 4, 4, 4]
    assert tuple(check["name"] for check in record["checks"]) == CHECKS
    assert record["memory_mib"]["weights"] > 0
    assert record["default_knobs"]["settings"] > 0
    shown = CliRunner().invoke(main, ["check-model", str(checkpoint), "--device", "cpu"])
    assert "skipped block" in shown.stdout
    assert "always run" in shown.stdout


def test_check_model_shows_the_check_that_refused_a_model(checkpoint, monkeypatch):
    monkeypatch.setattr(BlockRunner, "after", staticmethod(lambda index, hidden, _: hidden + 0.1 * index))
    result = CliRunner().invoke(main, ["check-model", str(checkpoint), "--device", "cpu", "--json"])
    assert result.exit_code == 1
    checks = json.loads(result.stdout)["checks"]
    assert [check["passed"] for check in checks] == [False]
    assert "the check `native plan`" in result.stderr
    with pytest.raises(ModelRefused, match="native plan"):
        load_model(str(checkpoint), device="cpu")


def test_check_model_knows_that_nano_needs_no_checks():
    result = CliRunner().invoke(main, ["check-model", "nano", "--device", "cpu", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["checks"] == []
