"""The protocol of a model family: all that execution, latency and runs know of a model.

One family is one folder beside this file; `loading.py` chooses it by the checkpoint's `config.json`.

Shapes: S prompt positions, R rows, N positions of one call, M probes, D d_model, V logits.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...data.knobs import KnobSpace
from .checks import Check
from .router_ties import TieWatch

View = Hashable  # one image as a tier presents it; equal views share all work
Positions = Any  # what `run_block` needs to know of its positions; opaque to the caller


@dataclass(frozen=True)
class Geometry:
    """What a model is, as far as knobs and caches depend on it."""

    name: str
    family: str
    fingerprint: str  # sha256 of what answers depend on
    d_model: int
    native_top_k: tuple[int | None, ...]  # of each block; None where a block has no router
    n_experts: int  # the smallest number of any block with a router
    max_positions: int  # of prompt and answer together
    tier_unit: str = "crops"  # what a tier's range counts: "crops" or "vision_tokens"
    always_run: frozenset[int] = frozenset()  # blocks that no plan may skip
    weight_bytes: int = 0  # memory of the weights as loaded

    @property
    def n_blocks(self) -> int:
        return len(self.native_top_k)

    @property
    def largest_top_k(self) -> int:
        """The one number by which caches and documents call the native top-k."""
        return max(k for k in self.native_top_k if k is not None)

    @property
    def least_top_k(self) -> int:
        """The native top-k of the block with the fewest experts per token: no knob exceeds it."""
        return min(k for k in self.native_top_k if k is not None)


class PromptSize(NamedTuple):
    """The numbers of a prompt that are known before its image is prepared."""

    length: int  # positions, S
    vision_tokens: int  # positions that hold image features
    text_tokens: int  # of the question in its template


@dataclass(frozen=True, eq=False)
class Prompt:
    """The model's input for one sample in one view, on the model's device."""

    view: View
    length: int  # positions, S
    vision_tokens: int  # positions that hold image features
    text_tokens: int  # of the question in its template
    inputs: Any  # only the family reads it


@dataclass(frozen=True, eq=False)
class EmbeddedPrompt:
    """A prompt after vision. A family may derive a class with further data for `positions`."""

    hidden_1SD: Tensor  # the first block's input

    @property
    def length(self) -> int:
        """Prompt positions, S."""
        return int(self.hidden_1SD.shape[1])


class BlockState(Protocol):
    """What one block keeps of the positions it has seen, for R rows: keys and values, or a recurrent state.

    `run_block` extends it. Rows belong to one prompt and have seen equally many positions.
    """

    def row(self, row: int) -> BlockState:
        """Returns one row's state, which may share memory with this one: only `Backbone.stack` makes it extensible."""
        ...

    def keep_rows(self, index: Tensor) -> None:
        """Drops every row but `index`, int64 [rows kept] on the model's device."""
        ...

    def clear(self) -> None:
        """Forgets all positions; memory given by `Backbone.new_state` is used again."""
        ...


class Backbone(Protocol):
    """A frozen model, run block by block. It keeps no state between calls: prompts may be interleaved."""

    geometry: Geometry
    end_ids: frozenset[int]  # tokens that end an answer
    prompt_template: str  # recorded in the cache
    default_instruction: str | None = None  # put with every question; None: the dataset's style
    default_max_new_tokens: int | None = None  # of an answer; None: the dataset's limit

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def check(self) -> tuple[Check, ...]:
        """Runs the checks that decide whether the model is accepted, on its real weights; by default none.

        Raises:
            ModelRefused: a check failed.
        """
        return ()

    def default_knobs(self) -> KnobSpace:
        """Returns a knob space that suits this model."""
        ...

    def view(self, height: int, width: int, size: tuple[int, int]) -> View:
        """Returns how an image of height x width pixels is presented in a tier.

        Args:
            size: the tier's inclusive range, in the geometry's `tier_unit`.
        """
        ...

    def prompt_size(self, question: str, style: str | None, view: View) -> PromptSize:
        """Returns the size of a prompt, from no pixels. Raises DatasetError for a text that cannot be encoded."""
        ...

    def prepare(self, question: str, style: str | None, rgb: NDArray[np.uint8], view: View) -> Prompt:
        """Encodes question and image, on one thread.

        Args:
            style: the dataset's instruction or prefix; None: none.
            rgb: uint8 [height, width, 3].

        Raises:
            DatasetError: the question cannot be encoded.
        """
        ...

    def embed(self, prompt: Prompt) -> EmbeddedPrompt:
        """Runs vision, once, and returns the first block's input."""
        ...

    def positions(self, prompt: EmbeddedPrompt, start: int, count: int, probes: int = 0) -> Positions:
        """Returns the position data of one call of `run_block`: for all S prompt positions, or for one position after.

        Args:
            start, count: 0 and S, or S or later and 1.
            probes: M further rows at the end of the prompt's. Each attends to the prompt and itself, nothing attends
                to it, and its position is S.
        """
        ...

    def new_state(self, index: int, capacity: int | None = None) -> BlockState:
        """Returns the empty state of a block.

        Args:
            capacity: positions and probes that the state will hold, for one row; memory for them is allocated now
                if the family can. None: as needed.
        """
        ...

    def stack(self, states: Sequence[BlockState], room: int) -> BlockState:
        """Returns one state whose rows are copies of single-row states of the same block.

        Args:
            room: positions by which the result will be extended.
        """
        ...

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
        """Runs one block on hidden [R, N, D], with what the model adds after it. To skip it, call `skip_block`.

        Args:
            top_k: experts per token, 1 to the block's native top-k (any number where the block has no router): for all
                rows, or [R] int64 on the CPU, one for each row. Applies to this call only.
            positions: from `positions`; the last M of N are probes if those positions have probes (then R = 1).
            state: extended by this call's positions, without its probes; None keeps nothing.
            last_only: whether only the last position's output is needed, so that a family may compute less.
            watch: records the router's ties, without changing the result.

        Returns:
            [R, N, D], or [R, 1, D] with `last_only`.
        """
        ...

    def skip_block(self, index: int, hidden: Tensor, positions: Positions) -> Tensor:  # noqa: ARG002
        """Returns what becomes of the last N prompt positions [R, N, D] when a block is left out.

        By default the same tensor; a family may add what its model adds after that block (such as image features).
        Only prompt positions get additions, so nothing is called for a skipped block while decoding.
        """
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Final norm and head: [R, N, D] -> [R, N, V]."""
        ...

    def word_embeddings(self, ids: Tensor) -> Tensor:
        """Returns the first block's input [..., D] of token ids [...] int64."""
        ...

    def embedding_norm(self) -> float:
        """Returns the median norm of the word embeddings, without untrained rows, which are zero."""
        ...

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text, without template. Raises DatasetError if there are none, or one is unknown."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Returns an answer's text, without special tokens, stripped."""
        ...
