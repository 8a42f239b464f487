"""The training state on disk, outside the repository: weights, Adam's moments, and the position in the run.

A safetensors file with the counters in its header, so reading it executes no code. The data of a step depends only on
(seed, stage, step), so nothing else is needed to continue bit by bit.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ...precompute.models.molmoe.model import Molmoe


@dataclass(frozen=True)
class Position:
    """The position of a run: the number of finished steps of a stage."""

    stage: str
    step: int


def save_state(path: Path, model: Molmoe, optimizer: torch.optim.AdamW, position: Position) -> None:
    """Writes the state atomically: if the process is killed, the previous file remains."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    tensors = {f"weight.{name}": parameter.detach() for name, parameter in model.named_parameters()}
    for parameter, moments in optimizer.state.items():
        for key, value in moments.items():
            tensors[f"{key}.{names[id(parameter)]}"] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_suffix(".part")
    metadata = {name: str(value) for name, value in asdict(position).items()}
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, written, metadata=metadata)
    written.replace(path)


def load_position(path: Path) -> Position:
    """Returns the position of the run in a state file."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    return Position(metadata["stage"], int(metadata["step"]))


def load_weights(path: Path, model: Molmoe, *, except_vision: bool = False) -> None:
    """Loads the state's weights into the model, optionally without those of the vision tower."""
    with safe_open(path, "pt") as file, torch.no_grad():
        for name, parameter in model.named_parameters():
            if except_vision and name.startswith("vision_backbone."):
                continue
            parameter.copy_(file.get_tensor(f"weight.{name}"))


def load_moments(path: Path, model: Molmoe, optimizer: torch.optim.AdamW) -> None:
    """Loads the state's moments into an optimizer of the same parameters."""
    with safe_open(path, "pt") as file:
        keys = set(file.keys())
        for name, parameter in model.named_parameters():
            if f"exp_avg.{name}" in keys:
                optimizer.state[parameter] = {
                    key: file.get_tensor(f"{key}.{name}") for key in ("step", "exp_avg", "exp_avg_sq")
                }
