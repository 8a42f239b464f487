"""Loads a checkpoint's own processor: image processing, tokenizer and chat template, without video and audio.

The image processor is the one that works on PIL images wherever transformers has one, also where torchvision is
installed: pixels then depend neither on the installation nor on the class that `preprocessor_config.json` names.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoImageProcessor, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerFast
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.processing_utils import ProcessorMixin

from ....data.errors import CheckpointError
from ....data.files.bounded_json import read_json_object
from .kimi_images import KimiImageProcessorPil

Processor = Any  # a ProcessorMixin; its class decides which further attributes it has

_CONFIG_FILES = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
_TORCHVISION = "Images of this model need torchvision: `pip install 'knobctl[transformers-models]'`"

# Image processors that transformers has for torchvision only.
_PIL_VARIANTS = {"Kimi_K25ImageProcessor": KimiImageProcessorPil, "Kimi_K25ImageProcessorFast": KimiImageProcessorPil}


def load_processor(directory: Path, config: PreTrainedConfig) -> Processor:
    """Returns the processor of a checkpoint directory, with its chat template.

    Raises:
        CheckpointError: a file is missing or malformed, or transformers has no such processor. The message says when a
            package would help.
    """
    settings = {name: _settings(directory / name) for name in _CONFIG_FILES}
    processor_class = _processor_class(directory, config, settings)
    parts = {"image_processor": _image_processor(directory, config, settings), "tokenizer": _tokenizer(directory)}

    class OfImagesAndText(processor_class):  # type: ignore[valid-type, misc]
        """The same processor; it may lack the parts for video and audio."""

        def check_argument_for_proper_class(self, argument_name: str, argument: object) -> Any:
            if argument is None:
                return None
            return super().check_argument_for_proper_class(argument_name, argument)

    OfImagesAndText.__name__ = processor_class.__name__
    try:
        fields, _ = processor_class.get_processor_dict(str(directory), local_files_only=True)
        made = OfImagesAndText.from_args_and_dict(
            [parts.get(name) for name in processor_class.get_attributes()],
            {name: value for name, value in fields.items() if name not in processor_class.get_attributes()},
        )
    except (AttributeError, ImportError, KeyError, OSError, TypeError, ValueError) as error:
        raise CheckpointError(f"{directory}: {processor_class.__name__} cannot be set up: {error}") from error
    processor: Processor = made[0] if isinstance(made, tuple) else made
    processor.chat_template = _chat_template(processor.chat_template or parts["tokenizer"].chat_template, directory)
    return processor


def _settings(path: Path) -> Mapping[str, Any]:
    return read_json_object(path, CheckpointError) if path.is_file() else {}


def _processor_class(
    directory: Path, config: PreTrainedConfig, settings: Mapping[str, Mapping[str, Any]]
) -> type[ProcessorMixin]:
    """Returns the class that the files name, else the one of the model type."""
    named = [content["processor_class"] for content in settings.values() if content.get("processor_class")]
    # A part of a model, such as qwen3_omni_moe_thinker, has the processor of the whole.
    types = [kind for kind in PROCESSOR_MAPPING_NAMES if f"{config.model_type}_".startswith(f"{kind}_")]
    known = PROCESSOR_MAPPING_NAMES[max(types, key=len)] if types else None
    for name in [*named, *([known] if known else [])]:
        found = getattr(transformers, name, None) if isinstance(name, str) else None
        if isinstance(found, type) and issubclass(found, ProcessorMixin):
            return found
    raise CheckpointError(
        f"{directory}: transformers {transformers.__version__} has no processor for {config.model_type}"
        + (f" ({', '.join(map(str, named))})." if named else ": its files name none.")
    )


def _image_processor(directory: Path, config: PreTrainedConfig, settings: Mapping[str, Mapping[str, Any]]) -> Any:
    if not settings["preprocessor_config.json"] and "image_processor" not in settings["processor_config.json"]:
        raise CheckpointError(f"{directory} has no preprocessor_config.json, so images cannot be prepared.")
    own = settings["processor_config.json"].get("image_processor") or settings["preprocessor_config.json"]
    known = IMAGE_PROCESSOR_MAPPING_NAMES.get(config.model_type) or {}
    loader = _PIL_VARIANTS.get(str(own.get("image_processor_type") or known.get("torchvision")))
    try:
        if loader is not None:
            return loader.from_pretrained(directory, local_files_only=True)
        return AutoImageProcessor.from_pretrained(
            directory, config=config, backend="pil", trust_remote_code=False, local_files_only=True
        )
    except (ImportError, KeyError, OSError, TypeError, ValueError) as error:
        hint = f" {_TORCHVISION}." if "torchvision" in str(error).lower() else ""
        raise CheckpointError(
            f"{directory}: its image processor cannot be loaded: {str(error).strip()}{hint}"
        ) from error


def _tokenizer(directory: Path) -> Any:
    """Returns the tokenizer that tokenizer.json describes. AutoTokenizer replaces parts of it for some model types."""
    loader = PreTrainedTokenizerFast if (directory / "tokenizer.json").is_file() else AutoTokenizer
    try:
        tokenizer = loader.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    except (ImportError, KeyError, OSError, TypeError, ValueError) as error:
        raise CheckpointError(f"{directory}: its tokenizer cannot be loaded: {error}") from error
    if not tokenizer.is_fast:
        raise CheckpointError(f"{directory} has no tokenizer.json, and its tokenizer needs code that is not supported.")
    return tokenizer


def _chat_template(template: object, directory: Path) -> str:
    """Returns the template to use: a checkpoint may have several by name."""
    if isinstance(template, Mapping):
        template = template.get("default")
    if not isinstance(template, str) or not template:
        raise CheckpointError(
            f"{directory} has no chat template, neither chat_template.jinja nor in its tokenizer_config.json, so "
            "questions cannot be asked in the model's own form: take an instruction-tuned checkpoint."
        )
    return template
