"""Options are generated from the configs; their names and defaults are part of the interface and do not change."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from knobctl.commands import precompute as precompute_command
from knobctl.commands.config_options import config_options
from knobctl.data.cache.shard import Shard
from knobctl.data.knobs import KnobSpace
from knobctl.precompute.run.config import PrecomputeConfig
from knobctl.precompute.scale import launch
from knobctl.replay.recipes import TrainConfig
from knobctl.replay.training import train
from knobctl.tests.support.caches import make_cache
from knobctl.tests.support.cli_commands import every_command

COMMANDS = every_command()
KNOWN = json.loads((Path(__file__).parent / "fixtures" / "cli_options.json").read_text())


def described(option: click.Option) -> dict[str, Any]:
    """What the interface promises of an option; no default, an empty one and an unset one are the same."""
    default = option.to_info_dict()["default"]
    if option.is_flag:
        default = bool(default)
    elif default in (None, "", ()):
        default = None
    return {
        "default": default if isinstance(default, bool | None) else str(default),
        "flag": option.is_flag,
        "multiple": option.multiple,
        "required": option.required,
    }


@pytest.mark.parametrize("name", KNOWN)
def test_options_keep_their_names_and_defaults(name: str):
    options = [option for option in COMMANDS[tuple(name.split())].params if isinstance(option, click.Option)]
    assert {option.opts[-1]: described(option) for option in options} == KNOWN[name]


def test_every_command_is_pinned():
    assert set(KNOWN) == {" ".join(name) for name, one in COMMANDS.items() if not isinstance(one, click.Group)}


def parse(name: str, *arguments: str) -> dict[str, Any]:
    words = tuple(name.split())
    with COMMANDS[words].make_context(name, list(arguments)) as context:
        return context.params


@pytest.mark.parametrize(
    ("command", "config", "arguments"),
    [
        ("precompute", PrecomputeConfig, ("--out", "x")),
        ("importance measure", PrecomputeConfig, ("--model", "nano", "--out", "x")),
        ("train", TrainConfig, ("cache", "--out", "x")),
        ("cross-validate", TrainConfig, ("cache",)),
    ],
)
def test_generated_parameters_bear_the_names_of_fields_and_their_help(
    command: str, config: type, arguments: tuple[str, ...]
):
    found = {option.name: option for option in COMMANDS[tuple(command.split())].params}
    generated = [item for item in fields(config) if item.name in found and item.metadata.get("help")]
    assert len(generated) > 13
    described_by_the_command = {"out", "seeds", "recipe"}
    differing = {item.name for item in generated if found[item.name].help != item.metadata["help"]}
    assert differing <= described_by_the_command
    assert parse(command, *arguments)


def test_the_command_builds_the_config_from_its_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    configs: list[PrecomputeConfig] = []
    monkeypatch.setattr(launch, "precompute", lambda config, *_: configs.append(config) or {})
    arguments = (
        "precompute --model nano --dataset a --dataset b=x.json --samples a=3 --metric a=vqa --max-new-tokens b=7 "
        "--budgets 40,0.5x --shard 0/4 --column answers=x --source-split all --skip-bad --top-k 4,8 --seed 7 "
        "--from-results results --latency imported --strict"
    )
    result = CliRunner().invoke(precompute_command.precompute, [*arguments.split()[1:], "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    (config,) = configs
    expected = PrecomputeConfig(
        model="nano",
        datasets=("a", "b=x.json"),
        out=tmp_path,
        samples={"a": 3},
        metrics={"a": "vqa"},
        max_new_tokens={"b": 7},
        budgets=("40", "0.5x"),
        shard=Shard(0, 4),
        column=("answers=x",),
        source_split=("all",),
        skip_bad=True,
        top_k="4,8",
        seed=7,
        from_results=Path("results"),
        imported_latency=True,
        strict=True,
    )
    assert config == expected
    assert config.space_for(KnobSpace()).top_k == (4, 8)


def test_training_options_change_the_recipe_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    configs: list[TrainConfig] = []

    class Report:
        def to_dict(self) -> dict[str, Any]:
            return {}

    def record(_cache: Path, _out: Path, config: TrainConfig, **_: Any) -> Report:
        configs.append(config)
        return Report()

    monkeypatch.setattr(train, "train_controllers", record)
    command = COMMANDS[("train",)]
    given = "--recipe=classic --epochs=3 --seeds=1,2 --reward-beta=0.25 --scale-rewards=batch"
    for arguments in ([], given.split()):
        result = CliRunner().invoke(command, ["cache", "--out", str(tmp_path), *arguments])
        assert result.exit_code == 0, result.output
    tuned, changed = configs
    assert tuned == TrainConfig()
    assert (changed.recipe, changed.epochs, changed.seeds, changed.scale_rewards) == ("classic", 3, (1, 2), "batch")
    assert changed.reward_weights.to_dict() == {**tuned.reward_weights.to_dict(), "beta": 0.25}
    assert changed.batch_size == 8


@dataclass(frozen=True)
class Example:
    """Fields of the kinds that the configs use."""

    name: str = field(metadata={"help": "A name."})
    whole: int = field(default=3, metadata={"help": "A number.", "option": "number"})
    share: float | None = field(default=None, metadata={"help": "A share."})
    many: tuple[str, ...] = field(default=(), metadata={"help": "Any number."})
    limits: Mapping[str, int] = field(default_factory=dict, metadata={"help": "Limits."})
    kind: bool = field(default=False, metadata={"help": "A kind.", "choices": {"plain": False, "fancy": True}})
    hidden: int = 1


def run_example(*arguments: str, **how: Any) -> dict[str, Any]:
    found: list[dict[str, Any]] = []

    @click.command()
    @config_options(Example, **how)
    def command(**options: Any) -> None:
        found.append(options)

    result = CliRunner().invoke(command, list(arguments))
    return found[0] if result.exit_code == 0 else {"output": result.output}


def test_options_follow_the_fields():
    assert Example(**run_example("--name", "x")) == Example("x")
    given = run_example("--name=x", "--number=5", "--share=.5", "--many=a", "--many=b", "--limits=a=2", "--kind=fancy")
    assert Example(**given) == Example("x", 5, 0.5, ("a", "b"), {"a": 2}, True)
    assert "Missing option '--name'" in run_example()["output"]
    assert "No such option '--hidden'" in run_example("--name=x", "--hidden=2")["output"]
    assert "must be a whole number above 0" in run_example("--name=x", "--limits=a=many")["output"]
    assert set(run_example(only={"whole", "kind"})) == {"whole", "kind"}
    assert run_example(without={"name", "many", "limits"}, defaults=False) == {
        "whole": None,
        "share": None,
        "kind": None,
    }
    assert run_example(optional={"name"})["name"] is None


def loaded_by(*arguments: object) -> list[str]:
    """Runs a command in a fresh process and returns the modules of the project that it imported."""
    code = (
        "import json, sys\nfrom knobctl.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "print(json.dumps([name for name in sys.modules if name.startswith('knobctl.')]))"
    )
    words = [str(word) for word in arguments]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    return list(json.loads(done.stdout.splitlines()[-1]))


def test_training_imports_nothing_of_precompute(tmp_path: Path):
    cache = make_cache(tmp_path / "cache", samples=40)
    modules = loaded_by("train", cache, "--out", tmp_path / "controllers", "--epochs", 1)
    assert "knobctl.replay.training.trainer" in modules
    assert [name for name in modules if name.startswith("knobctl.precompute")] == []
