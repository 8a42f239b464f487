"""Checkpoint directories as on the hub load completely and in little memory, or are refused with what is wrong."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from knobctl.data.errors import CheckpointError
from knobctl.precompute.models.transformers_moe.checkpoint import Checkpoint, load_checkpoint
from knobctl.tests.support.tiny_families import FAMILIES, plain_model, write_family

CPU = torch.device("cpu")


def load(directory: Path, dtype: torch.dtype = torch.float32) -> Checkpoint:
    return load_checkpoint(directory, dtype=dtype, device=CPU)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Callable[[str], Path]:
    folder, made = tmp_path_factory.mktemp("families"), {}

    def write(name: str) -> Path:
        if name not in made:
            made[name] = write_family(name, folder / name)
        return made[name]

    return write


@pytest.fixture
def copy(written, tmp_path) -> Path:
    """A directory of the smallest family, to be changed."""
    shutil.copytree(written("internvl"), tmp_path / "model")
    return tmp_path / "model"


def edit(path: Path, **changes: Any) -> None:
    """Changes fields of a JSON file; None removes one."""
    fields = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in fields.items() if value is not None}))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_weights_are_those_that_transformers_loads(written, name):
    mine, plain = load(written(name)).model.state_dict(), plain_model(name, written(name)).state_dict()
    assert mine.keys() == plain.keys()
    for key, tensor in plain.items():
        assert torch.equal(mine[key], tensor), key


@pytest.mark.parametrize("name", ["internvl", "gemma4"])
def test_weights_have_the_dtype_asked_for(written, name):
    plain, loaded = plain_model(name, written(name)), load(written(name), torch.bfloat16)
    for key, parameter in loaded.model.named_parameters():
        assert torch.equal(parameter, dict(plain.named_parameters())[key].to(torch.bfloat16)), key


def test_a_torchvision_class_in_the_files_is_replaced_by_the_one_for_pil(written):
    assert json.loads((written("internvl") / "preprocessor_config.json").read_text())["image_processor_type"] == (
        "GotOcr2ImageProcessorFast"
    )
    assert type(load(written("internvl")).processor.image_processor).__name__ == "GotOcr2ImageProcessorPil"


@pytest.mark.parametrize("home", ["chat_template.jinja", "chat_template.json", "tokenizer_config.json"])
def test_a_chat_template_is_found_where_checkpoints_have_it(copy, home):
    template = (copy / "chat_template.jinja").read_text()
    (copy / "chat_template.jinja").unlink()
    if home == "chat_template.jinja":
        (copy / home).write_text(template)
    else:
        edit(copy / home, chat_template=template) if (copy / home).is_file() else (copy / home).write_text(
            json.dumps({"chat_template": template})
        )
    assert load(copy).processor.chat_template == template


def test_of_several_chat_templates_the_default_is_used(copy):
    template = (copy / "chat_template.jinja").read_text()
    (copy / "chat_template.jinja").unlink()
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": template}]
    edit(copy / "tokenizer_config.json", chat_template=named)
    assert load(copy).processor.chat_template == template


def test_the_processor_of_a_model_type_is_used_if_the_files_name_none(copy):
    for name in ("preprocessor_config.json", "processor_config.json"):
        edit(copy / name, processor_class=None)
    edit(copy / "preprocessor_config.json", image_processor_type=None)
    processor = load(copy).processor
    assert type(processor).__name__ == "InternVLProcessor"
    assert processor.image_seq_length == 4


def test_a_part_of_a_model_has_the_processor_of_the_whole(written, tmp_path):
    shutil.copytree(written("qwen3_omni_moe_thinker"), tmp_path / "model")
    edit(tmp_path / "model" / "preprocessor_config.json", processor_class=None)
    assert type(load(tmp_path / "model").processor).__name__ == "Qwen3OmniMoeProcessor"


def test_what_ends_an_answer_is_what_generation_config_says(copy):
    edit(copy / "generation_config.json", eos_token_id=[2, 5])
    assert load(copy).end_ids == {2, 5}
    (copy / "generation_config.json").unlink()
    assert load(copy).end_ids == {2}  # of the config


def test_an_omni_models_thinker_is_loaded_alone(written):
    loaded = load(written("qwen3_omni_moe"))
    assert type(loaded.model).__name__ == "Qwen3OmniMoeThinkerForConditionalGeneration"
    assert not any("talker" in name for name in loaded.model.state_dict())


def no_template(directory: Path) -> None:
    (directory / "chat_template.jinja").unlink()


def only_pickled(directory: Path) -> None:
    for path in directory.glob("*.safetensors*"):
        path.unlink()
    (directory / "pytorch_model.bin").write_bytes(b"never read")


def one_tensor_less(directory: Path) -> None:
    leave_out(directory, "layers.2.self_attn.q_proj")


def one_expert_less(directory: Path) -> None:
    leave_out(directory, "experts.7.up_proj")


def leave_out(directory: Path, part: str) -> None:
    index = directory / "model.safetensors.index.json"
    fields = json.loads(index.read_text())
    gone = next(name for name in fields["weight_map"] if part in name)
    shard = directory / fields["weight_map"].pop(gone)
    save_file({name: value for name, value in load_file(shard).items() if name != gone}, shard, {"format": "pt"})
    index.write_text(json.dumps(fields))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: edit(d / "config.json", model_type="molmo_next"), "has no model of type 'molmo_next'"),
        (
            lambda d: edit(d / "config.json", model_type="kimi_vl", auto_map={"AutoConfig": "x.KimiVLConfig"}),
            "brings its own code .auto_map., which is never run",
        ),
        (lambda d: edit(d / "config.json", model_type="qwen3_moe"), "not a vision-language model"),
        (lambda d: edit(d / "config.json", quantization_config={"quant_method": "fp8"}), "quantised"),
        (lambda d: edit(d / "config.json", text_config={"model_type": "qwen3_moe", "vocab_size": "many"}), "config"),
        (only_pickled, "Pickled weights .* are never read"),
        (one_tensor_less, "lacks 1 tensors that its config requires"),
        (one_expert_less, "do not fit"),
        (no_template, "no chat template"),
        (lambda d: (d / "preprocessor_config.json").unlink(), "no preprocessor_config.json"),
        (lambda d: (d / "tokenizer.json").write_text("{}"), "tokenizer cannot be loaded"),
        (lambda d: (d / "tokenizer.json").unlink(), "tokenizer"),
        (lambda d: (d / "generation_config.json").write_text("[1]"), "generation_config.json cannot be used"),
    ],
)
def test_a_directory_that_cannot_be_used_is_refused(copy, damage, message):
    damage(copy)
    with pytest.raises(CheckpointError, match=message):
        load(copy)


@pytest.mark.skipif(
    subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, check=False).returncode == 0,
    reason="needs an environment without torchvision",
)
def test_an_image_processor_for_torchvision_only_names_the_extra(copy):
    edit(copy / "preprocessor_config.json", image_processor_type="Llama4ImageProcessorFast")
    with pytest.raises(CheckpointError, match=r"pip install 'knobctl\[transformers-models\]'"):
        load(copy)


def test_a_fingerprint_covers_all_that_answers_depend_on(copy):
    known = load(copy).fingerprint
    assert re.fullmatch("[0-9a-f]{64}", known)
    assert load(copy).fingerprint == known
    assert load(copy, torch.bfloat16).fingerprint != known
    changes: dict[str, Callable[[], object]] = {
        "chat_template.jinja": lambda: (copy / "chat_template.jinja").open("a").write(" "),
        "tokenizer": lambda: edit(copy / "tokenizer_config.json", model_max_length=99),
        "processor": lambda: edit(copy / "preprocessor_config.json", image_mean=[0.1, 0.2, 0.3]),
        "end of answers": lambda: edit(copy / "generation_config.json", eos_token_id=5),
        "config": lambda: edit(copy / "config.json", image_seq_length=8),
    }
    seen = {known}
    for name, change in changes.items():
        change()
        seen.add(load(copy).fingerprint)
        assert len(seen) == 2 + list(changes).index(name), name
    shard = sorted(copy.glob("*.safetensors"))[0]
    tensors = load_file(shard)
    next(iter(tensors.values())).view(-1)[3] += 1e-3
    save_file(tensors, shard, metadata={"format": "pt"})
    assert load(copy).fingerprint not in seen


# Loads in a process of its own and prints by how many bytes its resident memory grew at the most; VmHWM counts mapped
# files too. The small model first, so that imports do not count.
PEAK_PROGRAM = """
import re, sys, torch
from pathlib import Path
from knobctl.precompute.models.transformers_moe.checkpoint import load_checkpoint
def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
def load(directory, dtype):
    return load_checkpoint(Path(directory), dtype=dtype, device=torch.device("cpu")).model
load(sys.argv[2], torch.float32)
before = peak()
model = load(sys.argv[1], getattr(torch, sys.argv[3]))
print(peak() - before, sum(p.numel() * p.element_size() for p in model.parameters()))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("name", "experts"),
    [
        ("qwen3_vl_moe", "num_experts"),  # one tensor of all experts, transposed
        ("glm4v_moe", "n_routed_experts"),  # a tensor for each expert
        ("gemma4", "num_experts"),  # as the model has it
        ("ernie4_5_vl_moe", "moe_num_experts"),  # experts of text and of images in one list
    ],
)
def test_loading_takes_at_most_a_tenth_more_than_the_weights(written, tmp_path, name, experts, dtype):
    width = [1024, 1024] if name == "ernie4_5_vl_moe" else 1024
    text = {experts: 64, "moe_intermediate_size": width, "num_hidden_layers": 8}
    directory = write_family(name, tmp_path, text=text, shard_size="8MB")
    shards = [path.stat().st_size for path in directory.glob("*.safetensors")]
    command = [sys.executable, "-c", PEAK_PROGRAM, str(directory), str(written(name)), dtype]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    grown, model_bytes = map(int, result.stdout.split())
    print(
        f"{name} in {dtype}: {model_bytes / 2**20:.0f} MiB of weights in {len(shards)} shards of up to "
        f"{max(shards) / 2**20:.1f} MiB; peak {grown / model_bytes:.2f} of the weights, "
        f"{(grown - model_bytes) / len(shards) / 2**20:.2f} MiB beyond them per shard"
    )
    assert model_bytes > 50e6, "too small to tell"
    assert 0.9 * model_bytes < grown < 1.1 * model_bytes
