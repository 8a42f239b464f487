"""The training state on disk, outside the repository: weights, Adam's moments, and where the run stands.

Safetensors with the counters in its header, so that a state file can be read without running anything in it. Data is
drawn per step from (seed, step), so nothing else is needed to go on bit by bit.
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
    """Where a run stands: so many steps of this stage are done."""

    stage: str
    step: int


def save_state(path: Path, model: Molmoe, optimizer: torch.optim.AdamW, position: Position) -> None:
    """Writes the state; a run killed while writing leaves the file before it."""
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
    """Reads where the run in a state file stands."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    return Position(metadata["stage"], int(metadata["step"]))


def load_weights(path: Path, model: Molmoe, *, except_vision: bool = False) -> None:
    """Puts the state's weights into the model, the vision tower's only if wanted."""
    with safe_open(path, "pt") as file, torch.no_grad():
        for name, parameter in model.named_parameters():
            if except_vision and name.startswith("vision_backbone."):
                continue
            parameter.copy_(file.get_tensor(f"weight.{name}"))


def load_moments(path: Path, model: Molmoe, optimizer: torch.optim.AdamW) -> None:
    """Puts the state's moments into an optimizer of the same parameters."""
    with safe_open(path, "pt") as file:
        keys = set(file.keys())
        for name, parameter in model.named_parameters():
            if f"exp_avg.{name}" in keys:
                optimizer.state[parameter] = {
                    key: file.get_tensor(f"{key}.{name}") for key in ("step", "exp_avg", "exp_avg_sq")
                }
