"""A vision-language model of transformers behind the protocol: its prompts and views, its blocks, its checks.

Shapes: S prompt positions, N positions of one call, R rows, D d_model.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ....data.knobs import KnobSpace
from ..backbone import Backbone, BlockState, EmbeddedPrompt, Geometry, Positions, Prompt, PromptSize
from ..backbone import View as AnyView
from ..checks import Check
from ..router_ties import TieWatch
from .block_runner import BlockRunner, TextPrompt
from .checkpoint import Checkpoint, load_checkpoint
from .conformance import check_model
from .default_knobs import default_knobs
from .layer_states import LayerState
from .prompts import DEFAULT_INSTRUCTION, DEFAULT_MAX_NEW_TOKENS, Prompts
from .verified import is_verified, mark_verified
from .views import View, Views

FAMILY = "transformers"
_TRIAL_SIZE = (96, 128)  # of the image of the checks: height and width in pixels
_TRIAL_QUESTION = "What is this?"


class TransformersBackbone(Backbone):
    """A checkpoint with its processor. `load` checks it; the constructor does not."""

    default_instruction = DEFAULT_INSTRUCTION
    default_max_new_tokens = DEFAULT_MAX_NEW_TOKENS

    def __init__(self, checkpoint: Checkpoint, *, name: str) -> None:
        """
        Raises:
            CheckpointError: the model has no blocks with routers, or its prompts cannot be used.
        """
        self.checkpoint = checkpoint
        self.runner = BlockRunner(checkpoint.model)
        self.views = Views(checkpoint.processor)
        self.prompts = Prompts(checkpoint.processor, self.views, vocabulary=self.runner.vocabulary)
        self.prompt_template = self.prompts.template
        self.end_ids = checkpoint.end_ids
        runner = self.runner
        self.geometry = Geometry(
            name=name,
            family=FAMILY,
            fingerprint=checkpoint.fingerprint,
            d_model=runner.d_model,
            native_top_k=runner.native_top_k,
            n_experts=runner.n_experts,
            max_positions=runner.max_positions,
            tier_unit="vision_tokens",
            always_run=runner.always_run,
            weight_bytes=sum(weight.numel() * weight.element_size() for weight in checkpoint.model.parameters()),
        )

    @classmethod
    def load(
        cls, directory: Path, *, name: str, dtype: torch.dtype, device: torch.device, check: bool = True
    ) -> TransformersBackbone:
        """Loads a checkpoint directory.

        Args:
            check: whether to check the model, unless one with this fingerprint has passed on this machine.

        Raises:
            CheckpointError: the checkpoint cannot be read, or the model fails a check.
        """
        backbone = cls(load_checkpoint(directory, dtype=dtype, device=device), name=name)
        if check and not is_verified(backbone.geometry.fingerprint, device):
            backbone.check()
        return backbone

    def check(self) -> tuple[Check, ...]:
        """Runs every check on one small image, and remembers that the model passed. Raises ModelRefused if not."""
        generator = np.random.default_rng(0)
        rgb = generator.integers(0, 256, (*_TRIAL_SIZE, 3), dtype=np.uint8)
        knobs = self.default_knobs()
        assert knobs.tier_ranges is not None, "default knobs have tiers"
        view = self.view(*_TRIAL_SIZE, knobs.tier_ranges[0])
        prompt = self.prepare(_TRIAL_QUESTION, None, rgb, view)
        text_ids = self.encode(_TRIAL_QUESTION)
        checks = check_model(self.runner, prompt.inputs, text_ids=text_ids, name=self.geometry.name)
        mark_verified(self.geometry.fingerprint, self.device)
        return checks

    @property
    def device(self) -> torch.device:
        return self.runner.device

    @property
    def dtype(self) -> torch.dtype:
        return self.runner.dtype

    def default_knobs(self) -> KnobSpace:
        return default_knobs(self.geometry, self.views.convention)

    def view(self, height: int, width: int, size: tuple[int, int]) -> View:
        return self.views.view(height, width, size)

    def prompt_size(self, question: str, style: str | None, view: AnyView) -> PromptSize:
        own = cast(View, view)
        length = self.prompts.length(question, style, own)
        return PromptSize(length, own.vision_tokens, length - own.image_positions)

    def prepare(self, question: str, style: str | None, rgb: NDArray[np.uint8], view: AnyView) -> Prompt:
        own = cast(View, view)
        inputs = self.prompts.inputs(question, style, rgb, own)
        length = int(inputs["input_ids"].shape[1])
        placed = {
            name: value.to(self.device, self.dtype if value.is_floating_point() else None)
            for name, value in inputs.items()
        }
        return Prompt(view, length, own.vision_tokens, length - own.image_positions, placed)

    def embed(self, prompt: Prompt) -> TextPrompt:
        return self.runner.embed(prompt.inputs)

    def positions(self, prompt: EmbeddedPrompt, start: int, count: int, probes: int = 0) -> Positions:
        return self.runner.positions(prompt, start, count, probes)

    def new_state(self, index: int, capacity: int | None = None) -> LayerState:  # noqa: ARG002  grows as needed
        return self.runner.new_state(index)

    def stack(self, states: Sequence[BlockState], room: int) -> LayerState:  # noqa: ARG002  grows as needed
        return self.runner.stack(states)

    def run_block(
        self,
        index: int,
        hidden: Tensor,
        *,
        top_k: int | Tensor,
        positions: Positions,
        state: BlockState | None = None,
        last_only: bool = False,
        watch: TieWatch | None = None,
    ) -> Tensor:
        moved = self.runner.run_block(index, hidden, top_k=top_k, positions=positions, state=state, watch=watch)
        return moved[:, -1:] if last_only else moved

    def skip_block(self, index: int, hidden: Tensor, positions: Positions) -> Tensor:
        return self.runner.after(index, hidden, positions)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.runner.logits(hidden)

    def word_embeddings(self, ids: Tensor) -> Tensor:
        return self.runner.word_embeddings(ids)

    def embedding_norm(self) -> float:
        return self._embedding_norm

    @cached_property
    def _embedding_norm(self) -> float:
        return self.runner.embedding_norm()

    def encode(self, text: str) -> list[int]:
        return self.prompts.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        return self.prompts.decode(ids)
