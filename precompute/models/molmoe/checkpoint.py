"""Reads and writes checkpoints in the published layout: `config.json` and safetensors, in one file or indexed shards.

Nothing is unpickled, and no code from a checkpoint is run. Weights are copied tensor by tensor into modules built on
the meta device, so that memory is allocated once, in the requested dtype on the requested device.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from ....data.errors import CheckpointError
from ....data.files.bounded_json import read_json_object
from ..checkpoint_files import FLOAT_DTYPES, SINGLE_FILE, checkpoint_directory, few, open_shard, shard_tensors
from .config import MolmoeConfig
from .model import Molmoe
from .preprocess import IMAGE_MEAN, IMAGE_STD
from .tensor_names import Target, published_tensors


def load_molmoe(
    path_or_hub_id: str | Path,
    *,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    experts_implementation: str = "auto",
) -> Molmoe:
    """Loads a checkpoint, ready for inference.

    Args:
        revision: branch, tag or commit on the hub.
        dtype: of all weights, whatever the dtype in the file.

    Raises:
        CheckpointError: names the file, field or tensor that is missing, unexpected, misshapen or not supported.
    """
    directory = checkpoint_directory(path_or_hub_id, revision=revision)
    config = MolmoeConfig.from_json(directory / "config.json")
    check_processor(directory, config)
    with torch.device("meta"):
        model = Molmoe(config, experts_implementation=experts_implementation)
    shards = shard_tensors(directory)
    _check_tensors(published_tensors(model), shards, directory)
    materialise(model, dtype, torch.device(device))
    targets = published_tensors(model)
    with torch.no_grad():
        for shard, names in shards.items():
            with open_shard(shard) as tensors:
                for name in names:
                    targets[name].view.copy_(tensors.get_tensor(name))
    return model.eval().requires_grad_(False)


def save_molmoe(model: Molmoe, directory: Path | str, *, dtype: torch.dtype | None = None) -> None:
    """Writes `config.json` and one safetensors file with the published names. For small models.

    Args:
        dtype: of the weights in the file; None keeps the model's.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: target.view.to("cpu", dtype or model.dtype, copy=True).contiguous()
        for name, target in published_tensors(model).items()
    }
    (directory / "config.json").write_text(json.dumps(model.config.to_dict(), indent=1) + "\n", encoding="utf-8")
    save_file(tensors, directory / SINGLE_FILE, metadata={"format": "pt"})


def check_processor(directory: Path, config: MolmoeConfig) -> None:
    """Compares `preprocessor_config.json`, if present, with what the preprocessing does.

    Raises:
        CheckpointError: names the field with which images would be preprocessed differently.
    """
    path = directory / "preprocessor_config.json"
    if not path.exists():
        return
    vision, (rows, columns) = config.vision, config.pooled_grid
    ours: dict[str, object] = {
        "base_image_input_size": [vision.image_height, vision.image_width],
        "image_patch_size": vision.patch_size,
        "image_token_length_h": rows,
        "image_token_length_w": columns,
        "overlap_margins": list(config.overlap_margins),
        "image_mean": list(IMAGE_MEAN),
        "image_std": list(IMAGE_STD),
        "image_padding_mask": True,
        "do_normalize": True,
    }
    theirs = read_json_object(path, CheckpointError)
    for name, value in ours.items():
        if name in theirs and theirs[name] != value:
            raise CheckpointError(f"{path}: field {name!r} is {theirs[name]!r}, and only {value!r} is supported.")


def _check_tensors(targets: dict[str, Target], shards: dict[Path, list[str]], directory: Path) -> None:
    """Compares names, shapes and types with what the config requires, before any weight is read."""
    home: dict[str, Path] = {}
    for shard, names in shards.items():
        for name in names:
            if name in home:
                raise CheckpointError(f"{name} is in {home[name]} and in {shard}: keep one of them.")
            home[name] = shard
    if missing := sorted(set(targets) - set(home)):
        raise CheckpointError(f"{directory} lacks {len(missing)} tensors that its config requires: {few(missing)}.")
    if unexpected := sorted(set(home) - set(targets)):
        raise CheckpointError(f"{directory} has {len(unexpected)} tensors unknown to its config: {few(unexpected)}.")
    for shard, names in shards.items():
        with open_shard(shard) as tensors:
            for name in names:
                part = tensors.get_slice(name)
                shape, wanted = tuple(part.get_shape()), tuple(targets[name].view.shape)
                if shape != wanted:
                    raise CheckpointError(
                        f"{shard}: {name} has shape {list(shape)}, but its config requires {list(wanted)}."
                    )
                if part.get_dtype() not in FLOAT_DTYPES:
                    raise CheckpointError(f"{shard}: {name} has type {part.get_dtype()}, which is not a float type.")


def materialise(model: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Allocates memory, without values, for every parameter of a model on the meta device."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            empty = torch.empty(parameter.shape, dtype=dtype, device=device)
            setattr(module, name, nn.Parameter(empty, requires_grad=False))
