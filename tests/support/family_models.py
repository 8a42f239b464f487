"""Tiny checkpoints of families with knobs, and transformers' own models of the same weights as their oracle."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import AutoTokenizer

from knobctl.controllers.budget_encoder import BudgetEncoder
from knobctl.data.datasets.images import InlineImage
from knobctl.data.knobs import KnobSpace
from knobctl.data.plans import BlockPlan, ImportanceScores, uniform_plan
from knobctl.data.samples import Sample
from knobctl.precompute.execution.knob_model import KnobModel, Task
from knobctl.precompute.execution.token_pass import PromptState
from knobctl.precompute.models.backbone import Prompt
from knobctl.precompute.models.loading import load_model
from knobctl.tests.support.tiny_families import FAMILIES, model_class, plain_model

QUICK = ("qwen3_vl_moe", "gemma4")  # the families of the fast suite
EVERY = [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in FAMILIES]
NUM_TOKENS = 6
IMAGE_SIZES = ((64, 64), (90, 260), (300, 170))
TASKS = {"own": Task("exact_match", NUM_TOKENS, None)}


@dataclass(frozen=True)
class FamilyModel:
    """A family's tiny checkpoint, loaded as `knobctl` does and as transformers does."""

    name: str
    directory: Path

    @cached_property
    def knobs(self) -> KnobModel:
        loaded = load_model(str(self.directory), device="cpu")
        space = small_space(loaded.model.default_knobs(), loaded.model.geometry.n_blocks)
        scores = tuple(float((block * 7) % 5) for block in range(loaded.model.geometry.n_blocks))
        return KnobModel(
            loaded,
            space=space,
            importance=ImportanceScores(scores),
            encoder=BudgetEncoder.from_seed(loaded.model.geometry.d_model, 0),
            tasks=TASKS,
            budgets_ms=(10.0, 20.0, 40.0),
        )

    @cached_property
    def plain(self) -> Any:
        """transformers' own model of the same weights."""
        return plain_model(self.name, self.directory)

    def with_top_k(self, top_k: int) -> Any:
        """transformers' own model of the same weights, with another top-k in its config."""
        return plain_model(self.name, self.directory, text={FAMILIES[self.name].top_k_field: top_k})

    def with_plan(self, plan: BlockPlan) -> Any:
        """transformers' own model, whose routers have the top-k of a plan without skipped blocks."""
        model = plain_model(self.name, self.directory)
        for layer, top_k in zip(text_layers(model), plan, strict=True):
            for module in layer.modules():
                if isinstance(getattr(module, "top_k", None), int):
                    module.top_k = top_k
                elif "Router" in type(module).__name__:
                    module.config = copy.copy(module.config)
                    module.config.top_k_experts = top_k
        return model

    def without(self, skipped: Sequence[int]) -> Any:
        """transformers' own model with fewer layers, and the weights of those that are kept."""
        text = self.plain.config.get_text_config()
        kept = [block for block in range(text.num_hidden_layers) if block not in skipped]
        changes: dict[str, Any] = {"num_hidden_layers": len(kept)}
        for name in ("layer_types", "mlp_layer_types"):
            values = getattr(text, name, None)
            if values is not None:
                changes[name] = [values[block] for block in kept]
        ids = AutoTokenizer.from_pretrained(self.directory).get_vocab()
        config = FAMILIES[self.name].config(ids, changes)
        model = model_class(config)._from_config(config, dtype=torch.float32)
        weights, place = self.plain.state_dict(), {old: new for new, old in enumerate(kept)}
        prefix = next(name for name, module in self.plain.named_modules() if module is text_layers(self.plain))
        pattern = re.compile(rf"{re.escape(prefix)}\.(\d+)\.")
        renamed = {}
        for key, tensor in weights.items():
            found = pattern.match(key)
            if found is None:
                renamed[key] = tensor
            elif int(found[1]) in place:
                renamed[f"{prefix}.{place[int(found[1])]}.{key[found.end() :]}"] = tensor
        model.load_state_dict(renamed)
        return model.eval().requires_grad_(False)

    def sample(self, size: tuple[int, int], question: str = "what colour is the ball ?", seed: int = 0) -> Sample:
        """A sample whose image has this height and width."""
        return Sample(f"own/{size}/{seed}", "own", "test", question, ("red",), str(seed), picture(size, seed))

    def prepared(self, size: tuple[int, int], tier: str | None = None, seed: int = 0) -> tuple[Prompt, PromptState]:
        """A prompt after its token pass."""
        return self.knobs.prepare_tier(self.sample(size, seed=seed), tier or self.knobs.space.tiers[-1])

    def answer(self, state: PromptState, plan: BlockPlan) -> tuple[int, ...]:
        """The tokens of `knobctl`'s execution of a plan."""
        return self.knobs.answer(state, plan, TASKS["own"])

    def generated(self, model: Any, prompt: Prompt) -> tuple[int, ...]:
        """The tokens that one of transformers' models generates greedily."""
        with torch.inference_mode():
            ids = model.generate(
                **prompt.inputs,
                do_sample=False,
                max_new_tokens=NUM_TOKENS,
                eos_token_id=sorted(self.knobs.model.end_ids),
                pad_token_id=0,
            )
        return tuple(ids[0, prompt.length :].tolist())

    def uniform(self, top_k: int) -> BlockPlan:
        return uniform_plan(self.knobs.model.geometry.native_top_k, top_k)


def small_space(default: KnobSpace, n_blocks: int) -> KnobSpace:
    """The first two tiers of the default space, positions 1 and 3, two values of the other knobs."""
    ranges = default.tier_ranges
    assert ranges is not None
    return KnobSpace(default.tiers[:2], (1, 3), (1, 3), (n_blocks - 1, n_blocks), tier_vision_tokens=tuple(ranges[:2]))


def picture(size: tuple[int, int], seed: int) -> Any:
    """A random image as a dataset's image is."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return InlineImage(f"{size}-{seed}.png", buffer.getvalue())


def text_layers(model: Any) -> nn.ModuleList:
    """The text layers of one of transformers' models."""
    found = model.get_decoder()
    while not hasattr(found, "layers"):
        found = found.language_model
    layers: nn.ModuleList = found.layers
    return layers
