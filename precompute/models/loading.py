"""From a model's name to a backbone on a device; the checkpoint's `config.json` decides the family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ...data.errors import CheckpointError
from ...data.files.bounded_json import read_json_object
from ...data.paths import BUNDLED_ROOT, is_hub_id
from ...data.progress import SILENT, Progress
from ...devices import find_device, find_dtype
from .backbone import Backbone
from .checkpoint_files import checkpoint_directory
from .molmoe.backbone import MODEL_TYPE as MOLMOE
from .molmoe.backbone import MolmoeBackbone

BUNDLED_MODELS = ("nano",)

# Called with a checkpoint directory and, by keyword: name, dtype, device, and check (whether to check the model).
Loader = Callable[..., Backbone]
# The `model_type` of a config.json -> its family. Other types are those of transformers.
FAMILIES: dict[str, Loader] = {MOLMOE: MolmoeBackbone.load}


@dataclass(frozen=True)
class LoadedModel:
    """A checkpoint that is ready to run."""

    name: str
    directory: Path
    model: Backbone

    @property
    def fingerprint(self) -> str:
        return self.model.geometry.fingerprint

    @property
    def is_bundled(self) -> bool:
        return self.name in BUNDLED_MODELS


def load_model(
    name: str,
    *,
    revision: str | None = None,
    device: str = "cuda",
    dtype: str = "auto",
    check: bool = True,
    progress: Progress = SILENT,
) -> LoadedModel:
    """Loads a model by name; `model_directory` resolves the name.

    Args:
        revision: branch, tag or commit on the hub.
        dtype: float32, bfloat16 or float16; auto is float32 on the CPU and bfloat16 on a GPU.
        check: whether a model that has not passed its family's checks on this machine is checked now.

    Raises:
        CheckpointError: the model does not exist or cannot be read.
        KnobctlError: the device or dtype does not exist.
    """
    where = find_device(device)
    directory = model_directory(name, revision, progress=progress)
    family = _family(directory)
    model = family(directory, name=name, dtype=find_dtype(dtype, where), device=where, check=check)
    return LoadedModel(name, directory, model)


def _family(directory: Path) -> Loader:
    """Returns the loader of the family that a checkpoint's `config.json` names. Code of the checkpoint is never run.

    Raises:
        CheckpointError: the file is missing or malformed, or names no model type.
    """
    path = directory / "config.json"
    fields = read_json_object(path, CheckpointError)
    model_type = fields.get("model_type")
    if not isinstance(model_type, str):
        raise CheckpointError(f"{path} names no model_type: it is not the config of a model.")
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    from .transformers_moe.backbone import TransformersBackbone  # loads all of transformers

    return TransformersBackbone.load


def model_directory(name: str, revision: str | None = None, *, progress: Progress = SILENT) -> Path:
    """Returns the checkpoint directory of a bundled model, a path or a hub id, tried in this order.

    A bundled name always means the bundled model: write `./nano` for a directory of that name. An existing directory
    takes precedence over the hub repository of the same name, and `progress` notes that.

    Raises:
        CheckpointError: none of them exists.
    """
    if name in BUNDLED_MODELS:
        directory = BUNDLED_ROOT / name
        if not (directory / "config.json").is_file():
            raise CheckpointError(
                f"the bundled model {name} is missing from this installation ({directory}): reinstall knobctl."
            )
        return directory
    if is_hub_id(name) and Path(name).is_dir():
        progress.note(f"model {name}: the directory {Path(name).absolute()}, not the hub repository of that name")
    try:
        return checkpoint_directory(name, revision=revision)
    except CheckpointError as error:
        raise CheckpointError(f"{error} Bundled models: {', '.join(BUNDLED_MODELS)}.") from error
