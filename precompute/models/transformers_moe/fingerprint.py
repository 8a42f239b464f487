"""A digest of all that a model's answers depend on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from transformers import PreTrainedModel

from ....data.errors import CheckpointError
from ....data.files.bounded_json import read_json_object
from ..tensor_digest import add_tensor
from .processor import Processor

_TEXT_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "generation_config.json",
)


def checkpoint_fingerprint(directory: Path, model: PreTrainedModel, processor: Processor) -> str:
    """Returns the sha256, in hex, of config, weights and dtype as loaded, tokenizer, processor and chat template.

    Weights are read by `add_tensor`. Independent of the device and of the names of shards.
    """
    config = read_json_object(directory / "config.json", CheckpointError)
    for name in ("_name_or_path", "transformers_version", "dtype", "torch_dtype"):  # nothing depends on these
        config.pop(name, None)
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name in _TEXT_FILES:
        if (directory / name).is_file():
            digest.update(f"{name} {hashlib.sha256((directory / name).read_bytes()).hexdigest()}".encode())
    digest.update(f"{type(processor.image_processor).__name__} {processor.chat_template}".encode())
    for name, tensor in sorted(model.state_dict().items()):
        add_tensor(digest, name, tensor)
    return digest.hexdigest()
