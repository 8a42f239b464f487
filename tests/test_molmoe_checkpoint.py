"""Checkpoints in the published layout load completely and in little memory, or are refused with the tensor's name."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file

from knobctl.data.errors import CheckpointError
from knobctl.precompute.models import checkpoint_files
from knobctl.precompute.models.checkpoint_files import INDEX_FILE, SINGLE_FILE
from knobctl.precompute.models.molmoe.checkpoint import load_molmoe, save_molmoe
from knobctl.precompute.models.molmoe.config import MolmoeConfig
from knobctl.precompute.models.molmoe.fingerprint import model_fingerprint
from knobctl.precompute.models.molmoe.model import Molmoe
from knobctl.precompute.models.molmoe.tensor_names import published_tensors
from knobctl.tests.support.molmoe_fixtures import FIXTURES, TINY, tiny_model

EXPERT = "model.transformer.blocks.2.mlp.experts.5.up_proj.weight"
NORM = "model.transformer.blocks.1.attn.k_norm.weight"


def write_shards(directory: Path, tensors: dict[str, torch.Tensor], num_shards: int) -> dict[str, str]:
    """Writes an indexed checkpoint with a copy of the tiny config; returns its weight map."""
    directory.mkdir(exist_ok=True)
    shutil.copy(TINY / "config.json", directory)
    weight_map = {}
    for shard in range(num_shards):
        file = f"model-{shard + 1:05d}-of-{num_shards:05d}.safetensors"
        names = sorted(tensors)[shard::num_shards]
        save_file({name: tensors[name] for name in names}, directory / file)
        weight_map |= dict.fromkeys(names, file)
    (directory / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return weight_map


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    return load_file(TINY / SINGLE_FILE)


@pytest.fixture
def copy(tmp_path) -> Path:
    return Path(shutil.copytree(TINY, tmp_path / "copy"))


def save_over(directory: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, directory / SINGLE_FILE)


def test_names_and_shapes_are_the_published_ones():
    listed = json.loads((FIXTURES / "checkpoint_tensors.json").read_text())
    with torch.device("meta"):
        model = Molmoe(MolmoeConfig.from_json(FIXTURES / "config.MolmoE-1B-0924.json"))
    wanted = {}
    for pattern, entry in listed["tensors"].items():
        ranges = [range(low, high + 1) for low, high in listed["ranges"].values()]
        for block in ranges[0] if "{block}" in pattern else [0]:
            for expert in ranges[1] if "{expert}" in pattern else [0]:
                for vit in ranges[2] if "{vit}" in pattern else [0]:
                    wanted[pattern.format(block=block, expert=expert, vit=vit)] = tuple(entry["shape"])
    found = {name: tuple(target.view.shape) for name, target in published_tensors(model).items()}
    assert found == wanted
    assert len(found) == listed["total_tensors"]
    assert sum(parameter.numel() for parameter in model.parameters()) == listed["total_parameters"]


def test_shards_and_one_file_give_the_same_model(tmp_path, tensors):
    write_shards(tmp_path / "sharded", tensors, 5)
    state, sharded = tiny_model().state_dict(), load_molmoe(tmp_path / "sharded").state_dict()
    assert state.keys() == sharded.keys()
    assert all(torch.equal(state[name], sharded[name]) for name in state)


def test_every_weight_is_loaded_into_its_place(tensors):
    for name, target in published_tensors(tiny_model()).items():
        assert torch.equal(target.view, tensors[name]), name


def test_a_saved_model_loads_unchanged(tmp_path):
    save_molmoe(tiny_model(), tmp_path / "same")
    assert model_fingerprint(load_molmoe(tmp_path / "same")) == model_fingerprint(tiny_model())
    save_molmoe(tiny_model(), tmp_path / "half", dtype=torch.float16)
    half = load_molmoe(tmp_path / "half")
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.state_dict(), tiny_model().state_dict(), atol=2e-3, rtol=1e-3)


def test_the_dtypes_of_file_and_model_are_independent(copy, tensors):
    save_over(copy, {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()})
    model = load_molmoe(copy, dtype=torch.float16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}
    wanted = tensors[EXPERT].to(torch.bfloat16).to(torch.float16)
    assert torch.equal(published_tensors(model)[EXPERT].view, wanted)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("name", [EXPERT, NORM, "lm_head.weight", "model.vision_backbone.pad_embed"])
def test_a_missing_tensor_is_named(copy, tensors, name):
    del tensors[name]
    save_over(copy, tensors)
    with pytest.raises(CheckpointError, match=f"lacks 1 tensors.*{re.escape(name)}"):
        load_molmoe(copy)


def test_an_unexpected_tensor_is_named(copy, tensors):
    save_over(copy, {**tensors, "model.transformer.blocks.9.mlp.gate.weight": torch.zeros(2)})
    with pytest.raises(CheckpointError, match=r"unknown to its config: model\.transformer\.blocks\.9"):
        load_molmoe(copy)


@pytest.mark.parametrize("name", [EXPERT, NORM, "model.transformer.wte.new_embedding"])
def test_a_misshapen_tensor_is_named(copy, tensors, name):
    tensors[name] = tensors[name][:-1].contiguous()
    save_over(copy, tensors)
    with pytest.raises(CheckpointError, match=rf"{re.escape(name)} has shape \[.*\], but its config requires \["):
        load_molmoe(copy)


def test_a_tensor_of_integers_is_named(copy, tensors):
    save_over(copy, {**tensors, NORM: tensors[NORM].to(torch.int32)})
    with pytest.raises(CheckpointError, match=f"{re.escape(NORM)} has type I32"):
        load_molmoe(copy)


@pytest.mark.parametrize(
    "file", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "a\\b.safetensors", "weights.bin", "", 3, None]
)
def test_an_index_that_points_outside_its_directory_is_refused(tmp_path, tensors, file):
    weight_map = write_shards(tmp_path / "sharded", tensors, 2)
    weight_map[NORM] = file
    (tmp_path / "sharded" / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))
    (tmp_path / SINGLE_FILE).write_bytes((TINY / SINGLE_FILE).read_bytes())
    with pytest.raises(CheckpointError, match=f"{re.escape(NORM)} is in .*not a safetensors file name"):
        load_molmoe(tmp_path / "sharded")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}'])
def test_a_malformed_index_is_refused(tmp_path, tensors, content):
    write_shards(tmp_path, tensors, 2)
    (tmp_path / INDEX_FILE).write_text(content)
    with pytest.raises(CheckpointError, match=re.escape(INDEX_FILE)):
        load_molmoe(tmp_path)


def test_an_index_that_disagrees_with_its_shards_is_refused(tmp_path, tensors):
    weight_map = write_shards(tmp_path, tensors, 2)
    swapped = next(file for file in weight_map.values() if file != weight_map[NORM])
    (tmp_path / INDEX_FILE).write_text(json.dumps({"weight_map": {**weight_map, NORM: swapped}}))
    with pytest.raises(CheckpointError, match=f"disagree.*{re.escape(NORM)}"):
        load_molmoe(tmp_path)


def test_a_missing_shard_is_named(tmp_path, tensors):
    file = write_shards(tmp_path, tensors, 3)[NORM]
    (tmp_path / file).unlink()
    with pytest.raises(CheckpointError, match=re.escape(file)):
        load_molmoe(tmp_path)


@pytest.mark.parametrize("keep", [0, 5, 200, 100_000])
def test_a_truncated_file_is_refused(copy, keep):
    content = (copy / SINGLE_FILE).read_bytes()
    (copy / SINGLE_FILE).write_bytes(content[:keep])
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        load_molmoe(copy)


def test_pickles_are_not_read(copy):
    (copy / SINGLE_FILE).unlink()
    torch.save({}, copy / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="has no weights"):
        load_molmoe(copy)


@pytest.mark.parametrize(
    ("field", "value"), [("image_mean", [0.5, 0.5, 0.5]), ("overlap_margins", [4, 4]), ("do_normalize", False)]
)
def test_a_different_image_preprocessing_is_refused(copy, field, value):
    path = copy / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(CheckpointError, match=repr(field)):
        load_molmoe(copy)


def test_a_name_that_is_neither_a_directory_nor_a_hub_id_is_refused():
    with pytest.raises(CheckpointError, match=r"no directory no/such/place/at all .* not a hub id"):
        load_molmoe("no/such/place/at all")


def test_a_revision_of_a_directory_is_refused():
    with pytest.raises(CheckpointError, match="no revisions"):
        load_molmoe(TINY, revision="main")


def test_a_hub_id_is_fetched_at_its_revision(monkeypatch):
    asked = {}

    def fetch(name, *, revision, allow_patterns, ignore_patterns):
        asked.update(name=name, revision=revision, wanted=allow_patterns, unwanted=ignore_patterns)
        return str(TINY)

    monkeypatch.setattr(checkpoint_files, "snapshot_download", fetch)
    assert load_molmoe("owner/model", revision="abc").config == tiny_model().config
    assert (asked["name"], asked["revision"]) == ("owner/model", "abc")
    files = ["config.json", "model-1-of-2.safetensors", "chat_template.jinja", "model.bin", "modeling_x.py"]
    files += ["consolidated.safetensors", "original/model.safetensors", "model.gguf"]
    assert (
        list(filter_repo_objects(files, allow_patterns=asked["wanted"], ignore_patterns=asked["unwanted"])) == files[:3]
    )


def test_an_unreachable_hub_is_one_clear_error(monkeypatch):
    def fail(*_args, **_options):
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(checkpoint_files, "snapshot_download", fail)
    with pytest.raises(CheckpointError, match="hub could not be reached"):
        load_molmoe("owner/model")


# Loads in a process of its own and prints by how many bytes its resident memory grew at the most. VmHWM counts mapped
# files too, and, unlike getrusage, not what the process that started this one had.
PEAK_PROGRAM = """
import re, sys, torch
from pathlib import Path
from knobctl.precompute.models.molmoe.checkpoint import load_molmoe
def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
load_molmoe(sys.argv[2])  # the small model first, so that imports and thread pools do not count
before = peak()
model = load_molmoe(sys.argv[1], dtype=getattr(torch, sys.argv[3]))
print(peak() - before, sum(p.numel() * p.element_size() for p in model.parameters()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_peak_memory_is_the_model_and_less_than_a_shard_and_a_third(tmp_path, dtype):
    fields = json.loads((TINY / "config.json").read_text())
    fields |= {"d_model": 384, "n_layers": 2, "moe_num_experts": 16, "mlp_hidden_size": 1024}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    model = Molmoe(MolmoeConfig.from_dict(fields)).init_weights(0)
    weights = {name: target.view.contiguous() for name, target in published_tensors(model).items()}
    num_shards, files = 3, {}
    for shard in range(num_shards):
        names = list(weights)[shard::num_shards]
        file = f"model-{shard}.safetensors"
        save_file({name: weights[name].clone() for name in names}, tmp_path / file)
        files |= dict.fromkeys(names, file)
    (tmp_path / INDEX_FILE).write_text(json.dumps({"weight_map": files}))
    largest = max((tmp_path / file).stat().st_size for file in set(files.values()))
    assert largest > 20e6, "too small to tell"
    command = [sys.executable, "-c", PEAK_PROGRAM, str(tmp_path), str(TINY), dtype]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    grown, model_bytes = map(int, result.stdout.split())
    print(f"beyond the model: {(grown - model_bytes) / largest:.2f} of the largest shard")
    assert grown < model_bytes + 1.3 * largest
    assert grown > 0.9 * model_bytes, "the measurement saw nothing"


def test_different_models_have_different_fingerprints(copy, tensors):
    known = model_fingerprint(tiny_model())
    assert re.fullmatch("[0-9a-f]{64}", known)
    assert model_fingerprint(load_molmoe(TINY)) == known
    assert model_fingerprint(load_molmoe(TINY, dtype=torch.bfloat16)) != known
    tensors[EXPERT].view(-1)[7] += 1e-3
    save_over(copy, tensors)
    assert model_fingerprint(load_molmoe(copy)) != known
    fields = json.loads((TINY / "config.json").read_text()) | {"rope_theta": 20000.0}
    shutil.copy(TINY / SINGLE_FILE, copy)
    (copy / "config.json").write_text(json.dumps(fields))
    assert model_fingerprint(load_molmoe(copy)) != known
