"""From a model's name to weights, tokenizer and fingerprint, on a device. Knows nothing of knobs."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from ...data.errors import CheckpointError
from ...data.paths import BUNDLED_ROOT, is_hub_id
from ...devices import find_device, find_dtype
from .molmoe.checkpoint import checkpoint_directory, load_molmoe
from .molmoe.fingerprint import model_fingerprint
from .molmoe.model import Molmoe
from .molmoe.prompt import PromptTokenizer
from .progress import say

BUNDLED_MODELS = ("nano",)


@dataclass(frozen=True)
class LoadedModel:
    """A checkpoint, ready to run."""

    name: str
    directory: Path
    model: Molmoe
    tokenizer: PromptTokenizer
    fingerprint: str

    @property
    def is_bundled(self) -> bool:
        return self.name in BUNDLED_MODELS


def load_model(name: str, *, revision: str | None = None, device: str = "cuda", dtype: str = "auto") -> LoadedModel:
    """Loads a bundled model by name, a checkpoint directory, or a hub id, in this order: `model_directory`.

    Args:
        dtype: float32, bfloat16 or float16; auto is float32 on the CPU and bfloat16 on a GPU.

    Raises:
        CheckpointError: there is no such model, or it cannot be read.
        KnobctlError: there is no such device or dtype.
    """
    where = find_device(device)
    directory = model_directory(name, revision)
    model = load_molmoe(directory, dtype=find_dtype(dtype, where), device=where)
    tokenizer = PromptTokenizer.from_directory(directory)
    return LoadedModel(name, directory, model, tokenizer, fingerprint(model, directory))


def model_directory(name: str, revision: str | None = None) -> Path:
    """Returns the checkpoint directory of a bundled name, a path or a hub id.

    A bundled name is the bundled model, whatever directories there are: one that is called so is `./nano`. A directory
    that exists goes before the hub repository of the same name, which is said on stderr.
    """
    if name in BUNDLED_MODELS:
        directory = BUNDLED_ROOT / name
        if not (directory / "config.json").is_file():
            raise CheckpointError(
                f"the bundled model {name} is not in this installation ({directory}): install knobctl anew."
            )
        return directory
    if is_hub_id(name) and Path(name).is_dir():
        say(f"model {name}: the directory {Path(name).absolute()}, not the hub repository of that name")
    try:
        return checkpoint_directory(name, revision=revision)
    except CheckpointError as error:
        raise CheckpointError(f"{error} Bundled models: {', '.join(BUNDLED_MODELS)}.") from error


def fingerprint(model: Molmoe, directory: Path) -> str:
    """Returns the sha256 of what answers depend on: config, weights and dtype as loaded, and the tokenizer's file."""
    tokenizer = hashlib.sha256((directory / "tokenizer.json").read_bytes()).hexdigest()
    return hashlib.sha256(f"{model_fingerprint(model)} {tokenizer}".encode()).hexdigest()
