"""The files of a checkpoint directory: where they come from, and the weight files in it.

Weights are safetensors only, in one file or in shards named by an index. Nothing is unpickled.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open

from ...data.errors import CheckpointError
from ...data.files.bounded_json import read_json_object
from ...data.paths import existing_directory

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")  # as safetensors names them

# Config, weights, tokenizer and chat template; never code, and no second copy of the weights in another format.
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
_NOT_FROM_HUB = ["consolidated*", "original/*", "*/*.safetensors"]
_SHARD_NAME = re.compile(r"[\w-][\w.-]*\.safetensors")  # a plain file name: no folder, no parent, no drive
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def checkpoint_directory(path_or_hub_id: str | Path, *, revision: str | None = None) -> Path:
    """Returns the directory of a checkpoint, fetched from the hub if it is not local.

    Raises:
        CheckpointError: the directory does not exist, and the hub has no such repository or cannot be reached.
    """
    name = str(path_or_hub_id)
    path = existing_directory(name, f"config.json and {SINGLE_FILE}", error=CheckpointError)
    if path is not None:
        if revision is not None:
            raise CheckpointError(f"{path} is a directory, which has no revisions: omit --revision {revision}.")
        return path
    try:
        return Path(
            snapshot_download(name, revision=revision, allow_patterns=_HUB_FILES, ignore_patterns=_NOT_FROM_HUB)
        )
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{name} is not a directory, and the hub could not be reached, nor is the repository in its cache: "
            f"check the connection, or give a directory with config.json and {SINGLE_FILE}."
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        at = f" at revision {revision}" if revision else ""
        raise CheckpointError(f"{name}{at} cannot be fetched from the hub: {error}") from error


def shard_tensors(directory: Path) -> dict[Path, list[str]]:
    """Returns the tensor names of each weight file, as listed in the files themselves.

    Raises:
        CheckpointError: there are no safetensors, or files and index disagree.
    """
    shards: dict[Path, set[str] | None]
    if (directory / SINGLE_FILE).is_file():
        shards = {directory / SINGLE_FILE: None}
    elif (directory / INDEX_FILE).is_file():
        shards = _indexed_shards(directory / INDEX_FILE)
    else:
        hint = ""
        if any(next(directory.glob(pattern), None) for pattern in _PICKLED):
            hint = " Pickled weights (.bin, .pt) can run code and are never read: convert them to safetensors."
        raise CheckpointError(f"{directory} has no weights: neither {SINGLE_FILE} nor {INDEX_FILE} is there.{hint}")
    found: dict[Path, list[str]] = {}
    for shard, indexed in shards.items():
        with open_shard(shard) as tensors:
            found[shard] = sorted(tensors.keys())
        if indexed is not None and set(found[shard]) != indexed:
            odd = sorted(set(found[shard]) ^ indexed)
            where = "only the index names" if odd[0] in indexed else "the index does not name"
            raise CheckpointError(f"{shard} and {INDEX_FILE} disagree: {where} {few(odd)}.")
    return found


def _indexed_shards(index_path: Path) -> dict[Path, set[str] | None]:
    """Reads the index. File names are checked: an index must not point outside its directory."""
    weight_map = read_json_object(index_path, CheckpointError).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index_path}: field 'weight_map' is not an object that maps tensor names to files.")
    shards: dict[Path, set[str] | None] = {}
    for name, file in weight_map.items():
        if not isinstance(file, str) or not _SHARD_NAME.fullmatch(file):
            raise CheckpointError(f"{index_path}: {name} is in {file!r}, which is not a safetensors file name.")
        path = index_path.parent / file
        if path not in shards and not path.is_file():
            raise CheckpointError(f"{path} does not exist, but {INDEX_FILE} names it: the checkpoint is incomplete.")
        names = shards.setdefault(path, set())
        assert names is not None
        names.add(name)
    return shards


@contextmanager
def open_shard(path: Path) -> Iterator[safe_open]:
    """Opens a safetensors file; tensors are read when they are asked for. Raises CheckpointError if it is none."""
    try:
        with safe_open(path, framework="pt", device="cpu") as tensors:
            yield tensors
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors: {error}") from error


def few(names: list[str], limit: int = 5) -> str:
    """Returns the first few names, for a message."""
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")
