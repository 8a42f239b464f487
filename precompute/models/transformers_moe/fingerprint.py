"""A digest of all that a model's answers depend on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from transformers import PreTrainedModel

from ....data.errors import CheckpointError
from ....data.files.bounded_json import read_json_object
from .processor import Processor

# A larger tensor is sampled at this many evenly spaced entries, first and last included.
_MAX_ENTRIES_READ = 1 << 16
_TEXT_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "generation_config.json",
)


def checkpoint_fingerprint(directory: Path, model: PreTrainedModel, processor: Processor) -> str:
    """Returns the sha256, in hex, of config, weights and dtype as loaded, tokenizer, processor and chat template.

    Of large tensors, 65,536 evenly spaced entries are read. Independent of the device and of the names of shards.
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
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        entries = tensor.reshape(-1)
        if entries.numel() > _MAX_ENTRIES_READ:
            last = entries.numel() - 1
            place = torch.arange(_MAX_ENTRIES_READ, device=tensor.device) * last // (_MAX_ENTRIES_READ - 1)
            entries = entries.index_select(0, place)
        digest.update(entries.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
