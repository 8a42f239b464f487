"""Tiny random checkpoints of mixture-of-experts vision-language families, written as directories of the hub are.

Every family has real image processing, a made-up tokenizer, 8 experts of which 4 run, and width 32; weights vary enough
for block plans to give different answers. `FAMILIES` is the one registry of the parametrised tests.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from . import tiny_configs
from .tiny_configs import Ids
from .tiny_tokenizer import BEGIN, THINKING_OFF, chat_template, write_tokenizer

logging.disable_progress_bar()

_HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}


@dataclass(frozen=True)
class TinyFamily:
    """How one family's directory is written.

    Args:
        config: from token ids and changes of the text config to the model's config.
        special: its special tokens; `attributes` names those that its processor looks up.
        image: what the chat template writes for an image.
        preprocessor, processor: the contents of preprocessor_config.json and processor_config.json.
        top_k_field: the text config's name of the experts per token.
    """

    name: str
    config: Callable[[Ids, Mapping[str, Any]], PreTrainedConfig]
    special: tuple[str, ...]
    image: str
    preprocessor: Mapping[str, Any]
    attributes: Mapping[str, str] = field(default_factory=dict)
    processor: Mapping[str, Any] = field(default_factory=dict)
    template: Mapping[str, str] = field(default_factory=dict)
    template_home: str = "chat_template.jinja"
    top_k_field: str = "num_experts_per_tok"


_QWEN_TOKENS = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<think>", "</think>")
_OMNI_TOKENS = (*_QWEN_TOKENS, "<|audio_pad|>", "<|audio_start|>", "<|audio_end|>")
_QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
_QWEN_IMAGES = {
    "processor_class": "Qwen3VLProcessor",
    "image_processor_type": "Qwen2VLImageProcessorFast",
    "size": {"shortest_edge": 4 * 32 * 32, "longest_edge": 256 * 32 * 32},
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    **_HALF,
}
_OMNI_NAMES = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "audio_token": "<|audio_pad|>",
    "vision_bos_token": "<|vision_start|>",
    "vision_eos_token": "<|vision_end|>",
    "audio_bos_token": "<|audio_start|>",
    "audio_eos_token": "<|audio_end|>",
}
_GLM_MARKS = ("<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>")
_GLM_TOKENS = ("<|image|>", "<|video|>", *_GLM_MARKS, "<|user|>", "<think>", "</think>")
_KIMI_MARKS = ("<|media_begin|>", "<|media_end|>", "<think>", "</think>")
_KIMI_TOKENS = ("<|media_pad|>", "<|kimi_k25_video_placeholder|>", *_KIMI_MARKS)
_ERNIE_TOKENS = tuple(f"<|{kind}{end}|>" for kind in ("image", "video") for end in ("", "_start", "_end"))
_GEMMA_NAMES = {"image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>"}
_GEMMA_NAMES |= {"audio_token": "<|audio|>", "boa_token": "<|audio>", "eoa_token": "<audio|>"}
_INTERN_NAMES = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
_INTERN_NAMES |= {"video_token": "<video>"}

FAMILIES: dict[str, TinyFamily] = {
    family.name: family
    for family in (
        TinyFamily("qwen3_vl_moe", tiny_configs.qwen3_vl_moe, _QWEN_TOKENS, _QWEN_IMAGE, _QWEN_IMAGES),
        TinyFamily(
            "qwen3_5_moe",
            tiny_configs.qwen3_5_moe,
            _QWEN_TOKENS,
            _QWEN_IMAGE,
            _QWEN_IMAGES,
            template={"tail": THINKING_OFF},
            template_home="tokenizer_config.json",
        ),
        TinyFamily(
            "glm4v_moe",
            tiny_configs.glm4v_moe,
            _GLM_TOKENS,
            "<|begin_of_image|><|image|><|end_of_image|>",
            {
                "processor_class": "Glm4vProcessor",
                "image_processor_type": "Glm4vImageProcessor",
                "size": {"shortest_edge": 2 * 4 * 28 * 28, "longest_edge": 2 * 256 * 28 * 28},
            },
            template={"tail": THINKING_OFF, "turn_end": "<|user|>"},
        ),
        TinyFamily(
            "gemma4",
            tiny_configs.gemma4,
            ("<|image|>", "<|video|>", "<|audio|>", "<|image>", "<image|>", "<|audio>", "<audio|>"),
            "<|image|>",
            {
                "processor_class": "Gemma4Processor",
                "image_processor_type": "Gemma4ImageProcessorFast",
                "patch_size": 8,
                "pooling_kernel_size": 2,
                "max_soft_tokens": 280,
            },
            _GEMMA_NAMES,
            {"processor_class": "Gemma4Processor", "image_seq_length": 280},
            {"begin": BEGIN},
            "chat_template.json",
            "top_k_experts",
        ),
        TinyFamily(
            "ernie4_5_vl_moe",
            tiny_configs.ernie4_5_vl_moe,
            (*_ERNIE_TOKENS, "<think>", "</think>"),
            "<|image_start|><|image|><|image_end|>",
            {
                "processor_class": "Ernie4_5_VLMoeProcessor",
                "image_processor_type": "Ernie4_5_VLMoeImageProcessorFast",
                "size": {"shortest_edge": 4 * 28 * 28, "longest_edge": 256 * 28 * 28},
            },
            {token.strip("<|>") + "_token": token for token in _ERNIE_TOKENS},
            template={"begin": BEGIN, "tail": THINKING_OFF},
            top_k_field="moe_k",
        ),
        TinyFamily(
            "aria",
            tiny_configs.aria,
            ("<|img|>", "<fim_prefix>", "<fim_suffix>"),
            "<fim_prefix><|img|><fim_suffix>",
            {
                "processor_class": "AriaProcessor",
                "image_processor_type": "AriaImageProcessor",
                "max_image_size": 980,
                "min_image_size": 336,
            },
            {"image_token": "<|img|>"},
            {"processor_class": "AriaProcessor", "size_conversion": {"490": 8, "980": 16}},
            template_home="chat_template.json",
            top_k_field="moe_topk",
        ),
        TinyFamily(
            "internvl",
            tiny_configs.internvl,
            ("<IMG_CONTEXT>", "<img>", "</img>", "<video>"),
            "<IMG_CONTEXT>",
            {
                "processor_class": "InternVLProcessor",
                "image_processor_type": "GotOcr2ImageProcessorFast",
                "size": {"height": 56, "width": 56},
                "crop_to_patches": False,
                "min_patches": 1,
                "max_patches": 12,
            },
            _INTERN_NAMES,
            {"processor_class": "InternVLProcessor", "image_seq_length": 4},
        ),
        TinyFamily(
            "kimi_k25",
            tiny_configs.kimi_k25,
            _KIMI_TOKENS,
            "<|media_begin|>image<|media_pad|><|media_end|>",
            {
                "processor_class": "Kimi_K25Processor",
                "image_processor_type": "Kimi_K25ImageProcessor",
                "max_patches": 1024,
                **_HALF,
            },
            template={"tail": "{% if thinking is defined and not thinking %}<think></think>{% endif %}"},
        ),
        TinyFamily(
            "qwen3_omni_moe",
            tiny_configs.qwen3_omni_moe_thinker,
            _OMNI_TOKENS,
            _QWEN_IMAGE,
            {**_QWEN_IMAGES, "processor_class": "Qwen3OmniMoeProcessor"},
            _OMNI_NAMES,
        ),
        TinyFamily(
            "qwen3_omni_moe_thinker",
            tiny_configs.qwen3_omni_moe_thinker,
            _OMNI_TOKENS,
            _QWEN_IMAGE,
            {**_QWEN_IMAGES, "processor_class": "Qwen3OmniMoeProcessor"},
            _OMNI_NAMES,
        ),
        TinyFamily(
            "deepseek_ocr2",
            tiny_configs.deepseek_ocr2,
            ("<image>",),
            "<image>",
            {
                "processor_class": "DeepseekOcr2Processor",
                "image_processor_type": "DeepseekOcr2ImageProcessor",
                "size": {"height": 256, "width": 256},
                "tile_size": 192,
            },
            processor={"processor_class": "DeepseekOcr2Processor", "patch_size": 4, "downsample_ratio": 4},
            template={"begin": BEGIN},
        ),
    )
}


def write_family(
    name: str,
    directory: Path,
    *,
    seed: int = 0,
    text: Mapping[str, Any] | None = None,
    std: float = 0.3,
    shard_size: str = "150KB",
) -> Path:
    """Writes a checkpoint directory of a family and returns it.

    Args:
        text: changes of the text config, such as {"num_hidden_layers": 7}.
        std: of all weights of two or more dimensions; large enough for another plan to give another answer.
    """
    family = FAMILIES[name]
    directory.mkdir(parents=True, exist_ok=True)
    template = chat_template(family.image, **family.template)
    ids = write_tokenizer(
        directory,
        family.special,
        chat_template=template,
        template_home=family.template_home,
        attributes=family.attributes,
    )
    config = family.config(ids, text or {})
    model = random_model(config, seed=seed, std=std)
    model.save_pretrained(directory, max_shard_size=shard_size)
    _write_json(directory / "preprocessor_config.json", family.preprocessor)
    if family.processor:
        _write_json(directory / "processor_config.json", family.processor)
    if name == "qwen3_omni_moe":
        _embed_thinker(directory, config)
    return directory


def random_model(config: PreTrainedConfig, *, seed: int = 0, std: float = 0.3) -> PreTrainedModel:
    """Returns the model of a config with normally distributed weights, float32."""
    torch.manual_seed(seed)
    model = model_class(config)._from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=std, generator=generator)
            else:  # norms, biases, scales
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model.eval().requires_grad_(False)


def model_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """Returns transformers' own class for a config."""
    mapping = transformers.AutoModelForImageTextToText._model_mapping
    return mapping[type(config)]


def plain_model(name: str, directory: Path, *, text: Mapping[str, Any] | None = None) -> PreTrainedModel:
    """Loads a directory with transformers alone: the oracle of the families' tests.

    Args:
        text: changes of the text config, such as {"num_experts_per_tok": 2}; weights must still fit.
    """
    config = AutoConfig.from_pretrained(directory)
    renamed = None
    if name == "qwen3_omni_moe":
        config, renamed = config.thinker_config, {r"^thinker\.": ""}
    for field_name, value in (text or {}).items():
        setattr(config.get_text_config(), field_name, value)
    model = model_class(config).from_pretrained(directory, config=config, dtype=torch.float32, key_mapping=renamed)
    return model.eval().requires_grad_(False)


def _embed_thinker(directory: Path, config: PreTrainedConfig) -> None:
    """Turns a thinker's directory into that of a whole omni model, with one tensor that only the talker needs."""
    whole = AutoConfig.for_model("qwen3_omni_moe").to_dict()
    _write_json(directory / "config.json", {**whole, "thinker_config": config.to_dict()})
    index_path = directory / "model.safetensors.index.json"
    index = json.loads(index_path.read_text())
    for shard in sorted(set(index["weight_map"].values())):
        tensors = {f"thinker.{key}": tensor for key, tensor in load_file(directory / shard).items()}
        save_file(tensors, directory / shard, metadata={"format": "pt"})
    weight_map = {f"thinker.{key}": shard for key, shard in index["weight_map"].items()}
    save_file({"talker.codec_head.weight": torch.ones(2, 2)}, directory / "talker.safetensors", {"format": "pt"})
    _write_json(index_path, {**index, "weight_map": {**weight_map, "talker.codec_head.weight": "talker.safetensors"}})


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
