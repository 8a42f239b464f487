"""Keys and values that passes over prompts and answers leave behind, by block.

Shapes: R rows, S positions of this call, H key/value heads, W head width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import Cache


class PromptCache(Cache):
    """Keys and values of one pass over whole prompts, kept by block. Nothing lies in front of them."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.keys: dict[int, Tensor] = {}  # [R, H, S, W]
        self.values: dict[int, Tensor] = {}

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        """Keeps this call's keys and values and returns them."""
        self.keys[layer_idx], self.values[layer_idx] = key_states, value_states
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002  transformers' signature
        """Zero: a prompt is run in one pass."""
        return 0


class StepCache(Cache):
    """Keys and values of one block with room for new ones behind them: what a decoding step reads and extends.

    A step writes at place `length` and reads up to there. It is told the place by its caller, because blocks that are
    skipped are not called and so cannot count.
    """

    def __init__(self, keys: Mapping[int, Tensor], values: Mapping[int, Tensor], length: int) -> None:
        super().__init__(layers=[])
        self.keys, self.values, self.length = dict(keys), dict(values), length  # [R, H, capacity, W]

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        """Writes the step's keys and values [R, H, 1, W] in place; returns all up to and with them."""
        keys, values, end = self.keys[layer_idx], self.values[layer_idx], self.length + 1
        keys[:, :, self.length : end], values[:, :, self.length : end] = key_states, value_states
        return keys[:, :, :end], values[:, :, :end]

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002  transformers' signature
        """How many positions lie in the cache."""
        return self.length

    def keep_rows(self, index: Tensor) -> None:
        """Drops every row but `index` [rows kept]."""
        for store in (self.keys, self.values):
            for block, tensor in store.items():
                store[block] = tensor[index]


class RequestCache(Cache):
    """Keys and values of one request, each block's with room for the answer: a step writes in place."""

    def __init__(self, length: int, room: int) -> None:
        super().__init__(layers=[])
        self._capacity = length + room
        self.length = length  # positions of the prompt, then of prompt and answer; a probe behind them is not kept
        self._is_prompt = True
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        """Keeps the prompt's keys and values [1, H, S (+ 1), W], or writes a step's and returns all so far."""
        if self._is_prompt:
            self._keys[layer_idx] = self._kept(key_states)
            self._values[layer_idx] = self._kept(value_states)
            return key_states, value_states
        keys, values = self._keys[layer_idx], self._values[layer_idx]
        keys[:, :, self.length - 1 : self.length] = key_states
        values[:, :, self.length - 1 : self.length] = value_states
        return keys[:, :, : self.length], values[:, :, : self.length]

    def begin_step(self) -> None:
        """Makes room for one more position."""
        self._is_prompt = False
        self.length += 1

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002  transformers' signature
        """How many positions lie in front of this call's."""
        return 0 if self._is_prompt else self.length - 1

    def _kept(self, states: Tensor) -> Tensor:
        store = states.new_empty(*states.shape[:2], self._capacity, states.shape[-1])
        store[:, :, : self.length] = states[:, :, : self.length]
        return store


def with_room(prompt_RHSW: Tensor, room: int) -> Tensor:
    """Returns a copy [R, H, S + room, W] whose last places are still to be written."""
    rows, heads, length, width = prompt_RHSW.shape
    store = prompt_RHSW.new_empty(rows, heads, length + room, width)
    store[:, :, :length] = prompt_RHSW
    return store
