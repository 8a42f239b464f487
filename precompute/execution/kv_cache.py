"""Keys and values of a prompt and its answer, by block.

Shapes: R rows, N positions of one call, H key/value heads, W head width, C capacity in positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import Cache


class KeyValueCache(Cache):
    """Keys and values kept from one pass to the next.

    Memory given for a block is written in place; without it, the tensors of the call are kept, so a prompt's pass
    starts from an empty cache. The caller sets `length`, because a skipped block is not called and cannot update it.
    """

    def __init__(
        self,
        keys: Mapping[int, Tensor] | None = None,
        values: Mapping[int, Tensor] | None = None,
        length: int = 0,
        position_1: Tensor | None = None,
    ) -> None:
        """
        Args:
            keys, values: memory [R, H, C, W] of each block.
            length: positions that precede the next call's.
            position_1: where the next position is written, on the device. With it a call after the prompt returns the
                whole memory and needs a mask: its addresses and shapes stay the same, as a CUDA graph requires.
        """
        super().__init__(layers=[])
        self.keys, self.values = dict(keys or {}), dict(values or {})
        self.length, self._position_1 = length, position_1

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        """Stores the call's keys and values [R, H, N, W] after `length` positions.

        Returns:
            All keys and values up to and including the call's, [R, H, length + N, W], or with a position on the device
            [R, H, C, W].
        """
        if layer_idx not in self.keys:
            self.keys[layer_idx], self.values[layer_idx] = key_states, value_states
            return key_states, value_states
        keys, values = self.keys[layer_idx], self.values[layer_idx]
        if self.length and self._position_1 is not None:
            return keys.index_copy_(2, self._position_1, key_states), values.index_copy_(
                2, self._position_1, value_states
            )
        end = self.length + key_states.shape[2]
        keys[:, :, self.length : end], values[:, :, self.length : end] = key_states, value_states
        return (keys[:, :, :end], values[:, :, :end]) if self.length else (key_states, value_states)

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002  transformers' signature
        """Positions that precede the next call's."""
        return self.length

    def keep_rows(self, index: Tensor) -> None:
        """Drops every row but `index` [rows kept]."""
        for store in (self.keys, self.values):
            for block, tensor in store.items():
                store[block] = tensor[index]


def with_room(prompt_RHSW: Tensor, room: int) -> Tensor:
    """Returns a copy [R, H, S + room, W] of a prompt's S positions; the places after them are uninitialised."""
    rows, heads, length, width = prompt_RHSW.shape
    store = prompt_RHSW.new_empty(rows, heads, length + room, width)
    store[:, :, :length] = prompt_RHSW
    return store
