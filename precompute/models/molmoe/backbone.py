"""MolmoE behind the protocol of a model family: views, prompts, probes in the prompt's own pass, states in place.

Shapes: S prompt positions, M probes, R rows, N positions of one call, D d_model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ....data.errors import DatasetError
from ....data.knobs import KnobSpace
from ..backbone import Backbone, BlockState, EmbeddedPrompt, Geometry, Prompt, PromptSize, View
from ..embedding_norm import median_norm
from ..router_ties import TieWatch
from .checkpoint import load_molmoe
from .fingerprint import model_fingerprint
from .kv_state import KeyValueState, stack_states, with_room
from .model import Molmoe, Rotary
from .preprocess import feature_count, image_length, preprocess_image
from .prompt import PROMPT_TEMPLATE, PromptTokenizer
from .tiling import Tiling, choose_tiling

FAMILY = "molmoe"
MODEL_TYPE = "molmo"  # in the config.json of its checkpoints


class ImagePrompt(NamedTuple):
    """What `Prompt.inputs` holds."""

    crops_1NPX: Tensor
    masks_1NP: Tensor
    input_ids_1S: Tensor
    image_input_idx_1NQ: Tensor


class CallPositions(NamedTuple):
    """The positions of one call."""

    rotary: Rotary
    mask: Tensor | None  # [1, 1, N, N] bool, True = attend; None: causal
    probes: int


class MolmoeBackbone(Backbone):
    """A MolmoE checkpoint with its tokenizer."""

    prompt_template = PROMPT_TEMPLATE

    def __init__(self, molmoe: Molmoe, tokenizer: PromptTokenizer, *, name: str, fingerprint: str) -> None:
        config = molmoe.config
        self.molmoe, self.tokenizer = molmoe, tokenizer
        self.geometry = Geometry(
            name=name,
            family=FAMILY,
            fingerprint=fingerprint,
            d_model=config.d_model,
            native_top_k=(config.native_top_k,) * config.num_blocks,
            n_experts=config.num_experts,
            max_positions=config.max_position_embeddings,
            weight_bytes=sum(weight.numel() * weight.element_size() for weight in molmoe.parameters()),
        )
        self.end_ids = frozenset([tokenizer.special.end])

    @classmethod
    def load(
        cls,
        directory: Path,
        *,
        name: str,
        dtype: torch.dtype,
        device: torch.device,
        check: bool = True,  # noqa: ARG003  there is nothing to check
    ) -> MolmoeBackbone:
        """Loads a checkpoint directory. Raises CheckpointError for what is missing or not supported."""
        molmoe = load_molmoe(directory, dtype=dtype, device=device)
        tokenizer = PromptTokenizer.from_directory(directory)
        return cls(molmoe, tokenizer, name=name, fingerprint=_fingerprint(molmoe, directory))

    @property
    def device(self) -> torch.device:
        return self.molmoe.device

    @property
    def dtype(self) -> torch.dtype:
        return self.molmoe.dtype

    def default_knobs(self) -> KnobSpace:
        return KnobSpace()

    def view(self, height: int, width: int, size: tuple[int, int]) -> Tiling:
        return choose_tiling(height, width, size, self.molmoe.config)

    def prompt_size(self, question: str, style: str | None, view: View) -> PromptSize:
        tiling, config = _tiling(view), self.molmoe.config
        text_tokens = len(self._prompt_ids(question, style))
        length = 1 + image_length(tiling, config) + text_tokens
        return PromptSize(length, feature_count(tiling, config), text_tokens)

    def prepare(self, question: str, style: str | None, rgb: NDArray[np.uint8], view: View) -> Prompt:
        special, device = self.tokenizer.special, self.device
        image = preprocess_image(rgb, _tiling(view), self.molmoe.config, special)
        text = self._prompt_ids(question, style)
        input_ids_S = torch.cat([torch.tensor([special.begin]), image.token_ids, torch.tensor(text, dtype=torch.int64)])
        inputs = ImagePrompt(
            image.crops[None].to(device),
            image.masks[None].to(device),
            input_ids_S[None].to(device),
            image.image_input_idx[None].to(device),
        )
        return Prompt(view, len(input_ids_S), int((image.image_input_idx >= 0).sum()), len(text), inputs)

    def embed(self, prompt: Prompt) -> EmbeddedPrompt:
        inputs: ImagePrompt = prompt.inputs
        features = self.molmoe.encode_images(inputs.crops_1NPX, inputs.masks_1NP)
        return EmbeddedPrompt(self.molmoe.embed(inputs.input_ids_1S, features, inputs.image_input_idx_1NQ))

    def positions(
        self,
        prompt: EmbeddedPrompt,  # noqa: ARG002  the protocol's
        start: int,
        count: int,
        probes: int = 0,
    ) -> CallPositions:
        place_N = torch.arange(start, start + count + probes, device=self.device)
        mask = None
        if probes:
            place_N = place_N.clamp(max=start + count)
            # A single probe at the end sees all before it: the causal order, which is faster than a mask.
            mask = probe_mask(count, probes, self.device) if probes > 1 else None
        return CallPositions(self.molmoe.position_embeddings(place_N[None]), mask, probes)

    def new_state(self, index: int, capacity: int | None = None) -> KeyValueState:  # noqa: ARG002
        if capacity is None:
            return KeyValueState()
        config = self.molmoe.config
        shape = (1, config.num_kv_heads, capacity, config.head_width)
        keys, values = torch.zeros(2, *shape, dtype=self.dtype, device=self.device)
        return KeyValueState(keys, values)

    def stack(self, states: Sequence[BlockState], room: int) -> KeyValueState:
        return stack_states(cast(Sequence[KeyValueState], states), room)

    def run_block(
        self,
        index: int,
        hidden: Tensor,
        *,
        top_k: int | Tensor,
        positions: CallPositions,
        state: BlockState | None = None,
        last_only: bool = False,
        watch: TieWatch | None = None,
    ) -> Tensor:
        rotary, mask, probes = positions
        cache = cast(KeyValueState | None, state)
        if last_only and hidden.shape[1] > 1:
            assert not probes, "probes need the outputs before the last one"
            return self._run_last(index, hidden, top_k, rotary, cache, watch)
        moved = self.molmoe.run_block(
            index, hidden, top_k=top_k, position_embeddings=rotary, attention_mask=mask, cache=cache, watch=watch
        )
        if cache is not None and probes:
            cache.length -= probes  # the next call overwrites them
        return moved

    def _run_last(
        self,
        index: int,
        hidden: Tensor,
        top_k: int | Tensor,
        rotary: Rotary,
        cache: KeyValueState | None,
        watch: TieWatch | None,
    ) -> Tensor:
        """Computes the keys and values of all positions, and the rest of the block for the last one."""
        cosine, sine = rotary
        front = self.molmoe.keys_values(index, hidden[:, :-1], (cosine[:, :-1], sine[:, :-1]))
        cache = KeyValueState() if cache is None else cache
        cache.keys, cache.values = (with_room(prompt_RHSW, room=1) for prompt_RHSW in front)
        cache.length = hidden.shape[1] - 1
        return self.molmoe.run_block(
            index,
            hidden[:, -1:],
            top_k=top_k,
            position_embeddings=(cosine[:, -1:], sine[:, -1:]),
            cache=cache,
            watch=watch,
        )

    def logits(self, hidden: Tensor) -> Tensor:
        return self.molmoe.logits(hidden)

    def word_embeddings(self, ids: Tensor) -> Tensor:
        return self.molmoe.word_embeddings(ids)

    def embedding_norm(self) -> float:
        return median_norm(self.molmoe.embedding.weight)

    def encode(self, text: str) -> list[int]:
        ids = self._known_ids(self.tokenizer.encode(text), text)
        if not ids:
            raise DatasetError(f"the question {text[:40]!r} has no token that the model knows: rephrase it.")
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids)

    def _prompt_ids(self, question: str, style: str | None) -> list[int]:
        """Returns the prompt's token ids, without the begin token and the image tokens."""
        return self._known_ids(self.tokenizer.encode_prompt(question, style), question)

    def _known_ids(self, ids: list[int], question: str) -> list[int]:
        """Returns `ids`. Raises DatasetError if one has no embedding."""
        rows = self.molmoe.config.embedding_size + self.molmoe.config.additional_vocab_size
        if ids and max(ids) >= rows:
            raise DatasetError(
                f"the question {question[:40]!r} has token {max(ids)}, but the model has embeddings of {rows} tokens "
                "only."
            )
        return ids


def probe_mask(length: int, num_probes: int, device: torch.device) -> Tensor:
    """Returns the mask [1, 1, S + M, S + M] bool, True = attend: prompt causal, a probe to the prompt and itself."""
    total = length + num_probes
    mask = torch.ones(total, total, dtype=torch.bool, device=device).tril()
    mask[length:, length:] = torch.eye(num_probes, dtype=torch.bool, device=device)
    return mask[None, None]


def _tiling(view: View) -> Tiling:
    assert isinstance(view, tuple), "a view of this family is a tiling"
    return view


def _fingerprint(molmoe: Molmoe, directory: Path) -> str:
    """Returns the sha256 of what answers depend on: config, weights and dtype as loaded, and the tokenizer's file."""
    tokenizer = hashlib.sha256((directory / "tokenizer.json").read_bytes()).hexdigest()
    return hashlib.sha256(f"{model_fingerprint(molmoe)} {tokenizer}".encode()).hexdigest()
