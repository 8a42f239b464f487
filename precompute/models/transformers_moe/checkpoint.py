"""Loads a checkpoint directory as it is on the hub: config, weights, processor and what ends an answer.

No code from a checkpoint is run, only safetensors are read, and the model is one copy on one device.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging

from ....data.errors import CheckpointError
from ....data.files.bounded_json import read_json_object
from ..checkpoint_files import few
from .fingerprint import checkpoint_fingerprint
from .processor import Processor, load_processor
from .weights import arrange_experts, stored_weights

_CLASSES: Any = AutoModelForImageTextToText._model_mapping  # config's class -> model's class
# What transformers raises for fields of a wrong type or value.
_MALFORMED = (AttributeError, ImportError, KeyError, OSError, StrictDataclassError, TypeError, ValueError)


@dataclass(frozen=True)
class Checkpoint:
    """A model on its device, and what makes its prompts."""

    model: PreTrainedModel
    processor: Processor
    end_ids: frozenset[int]
    fingerprint: str


def load_checkpoint(directory: Path, *, dtype: torch.dtype, device: torch.device) -> Checkpoint:
    """Loads a checkpoint directory, ready for inference.

    Args:
        dtype: of all weights, except those that the model's class keeps in float32.

    Raises:
        CheckpointError: names the file, field or tensor that is missing, malformed or not supported.
    """
    with _quiet():
        config, prefix = read_config(directory)
        processor = load_processor(directory, config)
        model = _load_model(directory, config, prefix, dtype, device)
        model.generation_config = _generation_config(directory, config)
    end_ids = _end_ids(model.generation_config, processor)
    return Checkpoint(model, processor, end_ids, checkpoint_fingerprint(directory, model, processor))


def read_config(directory: Path) -> tuple[PreTrainedConfig, str]:
    """Returns the config of the vision-language model in a directory, and the prefix of its tensors' names.

    Raises:
        CheckpointError: transformers has no vision-language model of this type, or its weights are quantised.
    """
    path = directory / "config.json"
    content = read_json_object(path, CheckpointError)
    model_type = content.get("model_type")
    version = f"transformers {transformers.__version__}"
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        code = " It brings its own code (auto_map), which is never run." if "auto_map" in content else ""
        raise CheckpointError(f"{path}: {version} has no model of type {model_type!r}.{code}")
    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    except _MALFORMED as error:
        raise CheckpointError(f"{path} is not a config of {model_type}: {error}") from error
    found = _vision_language_part(config)
    if found is None:
        raise CheckpointError(f"{path}: {model_type} is not a vision-language model in {version}.")
    if getattr(config, "quantization_config", None) or getattr(found[0], "quantization_config", None):
        raise CheckpointError(
            f"{path}: the weights are quantised (quantization_config), which is not supported: give a checkpoint in "
            "bfloat16, float16 or float32."
        )
    return found


def _vision_language_part(config: PreTrainedConfig) -> tuple[PreTrainedConfig, str] | None:
    """Returns the config itself, or the part of it that answers questions, such as an omni model's thinker."""
    if type(config) in _CLASSES:
        return config, ""
    for name in vars(config):
        part = getattr(config, name)
        if isinstance(part, PreTrainedConfig) and type(part) in _CLASSES:
            return part, name.removesuffix("_config") + "."
    return None


def _load_model(
    directory: Path, config: PreTrainedConfig, prefix: str, dtype: torch.dtype, device: torch.device
) -> PreTrainedModel:
    model_class = _CLASSES[type(config)]
    with torch.device("meta"):
        empty = model_class._from_config(config, dtype=dtype)
    _check_memory(empty, directory, device)
    kept = {*(empty._keep_in_fp32_modules or ()), *(empty._keep_in_fp32_modules_strict or ())}
    with stored_weights(directory, prefix, dtype, kept) as weights, _one_thread():
        try:
            model, found = model_class.from_pretrained(
                None,
                config=config,
                state_dict=arrange_experts(weights, empty),
                dtype=dtype,
                output_loading_info=True,
            )
        except (AttributeError, ImportError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(f"{directory}: the weights do not fit {model_class.__name__}: {error}") from error
    if problems := sorted(map(str, found["mismatched_keys"])) + sorted(found["error_msgs"]):
        raise CheckpointError(f"{directory}: the weights do not fit its config: {few(problems)}.")
    if missing := sorted(found["missing_keys"]):
        raise CheckpointError(f"{directory} lacks {len(missing)} tensors that its config requires: {few(missing)}.")
    placed: PreTrainedModel = model.to(device).eval().requires_grad_(False)  # moves one parameter after another
    return placed


def _check_memory(empty: PreTrainedModel, directory: Path, device: torch.device) -> None:
    """Raises CheckpointError if the weights do not fit on the GPU. One model is never spread over several."""
    if device.type != "cuda":
        return
    needed = sum(parameter.numel() * parameter.element_size() for parameter in empty.parameters())
    free, _ = torch.cuda.mem_get_info(device)
    if needed > free:
        raise CheckpointError(
            f"{directory}: the weights take {needed / 2**30:.1f} GiB, and {device} has {free / 2**30:.1f} GiB free. "
            "One model runs on one device and is not spread over several: take a larger GPU, a smaller model, "
            "--dtype bfloat16, or --device cpu."
        )


def _generation_config(directory: Path, config: PreTrainedConfig) -> GenerationConfig:
    if not (directory / "generation_config.json").is_file():
        return GenerationConfig.from_model_config(config)
    try:
        return GenerationConfig.from_pretrained(directory, local_files_only=True)
    except (OSError, TypeError, ValueError) as error:
        raise CheckpointError(f"{directory}/generation_config.json cannot be used: {error}") from error


def _end_ids(generation: GenerationConfig, processor: Processor) -> frozenset[int]:
    """Returns the tokens at which generation stops, as the checkpoint says, else the tokenizer's end token."""
    found = generation.eos_token_id
    if found is None:
        found = processor.tokenizer.eos_token_id
    if found is None:
        raise CheckpointError("neither generation_config.json nor the tokenizer names a token that ends an answer.")
    return frozenset(found if isinstance(found, list) else [found])


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps transformers from writing progress bars and advice; what matters is raised."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Has transformers read tensors when they are needed; ahead of time, on threads, they take twice the memory."""
    name = "HF_DEACTIVATE_ASYNC_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before
