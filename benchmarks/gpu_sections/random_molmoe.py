"""MolmoE with random weights: its speed, and the model with its knobs for other sections."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from molmoe import CONFIGS, FIXTURES, Timer, measure, random_model
from tables import Row

from knobctl.controllers.budget_encoder import BudgetEncoder
from knobctl.data.budgets import normalise_budgets
from knobctl.data.datasets.images import InlineImage
from knobctl.data.knobs import KnobSpace
from knobctl.data.plans import ImportanceScores
from knobctl.data.samples import Sample
from knobctl.precompute.execution.knob_model import KnobModel, Task
from knobctl.precompute.models.loading import LoadedModel
from knobctl.precompute.models.molmoe.backbone import MolmoeBackbone
from knobctl.precompute.models.molmoe.config import MolmoeConfig
from knobctl.precompute.models.molmoe.prompt import PromptTokenizer, SpecialTokens
from precompute import PUBLISHED_ORDER

from .worker import Work

SMALL_SPACE = KnobSpace(("low", "high"), (1, 2), (2, 4), (3, 4), tier_crops=((1, 2), (3, 4)))


def speed(work: Work) -> Iterator[Row]:
    """Yields prefill, decoding with CUDA graphs, vision, memory, shares of the peaks, and the effect of every knob."""
    config, dtype = _config(work)
    if work.is_small:
        yield from measure(Timer(work.device, 2), config, dtype, prompt_tokens=(30, 60, 120))
    else:
        yield from measure(Timer(work.device, 20), config, dtype)


def random_knobs(work: Work) -> tuple[KnobModel, Sample]:
    """Returns the model with the full knob space, and one sample for it."""
    config, dtype = _config(work)
    model = random_model(config, dtype, work.device, "auto")
    knobs = KnobModel(
        LoadedModel(
            "random-molmoe",
            Path(),
            MolmoeBackbone(model, NumberTokenizer(config), name="random-molmoe", fingerprint="random"),
        ),
        space=SMALL_SPACE if work.is_small else KnobSpace(),
        importance=ImportanceScores(PUBLISHED_ORDER.scores[: config.num_blocks]),
        encoder=BudgetEncoder.from_seed(config.d_model, 0),
        tasks={"random": Task("exact_match", 2 if work.is_small else 8, None)},
        budgets_ms=normalise_budgets(np.geomspace(10, 160, 16)),
    )
    image = FIXTURES / "images" / "p6_640x480.png"
    question = "What is written on the sign to the left of the door ?"
    return knobs, Sample(
        "random/0", "random", "test", question, ("nothing",), "p6", InlineImage(image.name, image.read_bytes())
    )


class NumberTokenizer(PromptTokenizer):
    """A tokenizer whose text is the decimal token ids, so that answers are equal only if all their tokens are."""

    def __init__(self, config: MolmoeConfig) -> None:
        self._words = config.vocab_size - 2
        images = range(config.embedding_size, config.embedding_size + 4)  # in the additional vocabulary
        self.special = SpecialTokens(config.vocab_size - 1, config.vocab_size - 1, config.pad_token_id, *images)

    def encode(self, text: str) -> list[int]:
        return [sum(word.encode()) % self._words for word in text.split()]

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))


def _config(work: Work) -> tuple[MolmoeConfig, torch.dtype]:
    config = MolmoeConfig.from_json(CONFIGS["tiny" if work.is_small else "full"])
    return config, torch.float32 if work.device.type == "cpu" else torch.bfloat16
