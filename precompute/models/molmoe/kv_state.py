"""Keys and values of a prompt and its answer, of one block.

Shapes: R rows, N positions of one call, S positions kept, H key/value heads, W head width, C capacity in positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class KeyValueState:
    """Keys and values kept from one call of a block to the next; the block extends it as it would transformers' cache.

    Memory given at first is written in place; without it the tensors of the call are kept.
    """

    def __init__(self, keys: Tensor | None = None, values: Tensor | None = None, length: int = 0) -> None:
        """
        Args:
            keys, values: memory [R, H, C, W].
            length: positions that precede the next call's.
        """
        self.keys, self.values, self.length = keys, values, length

    def update(self, keys: Tensor, values: Tensor, block_index: int = 0) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Stores the call's keys and values [R, H, N, W] after `length` positions.

        Returns:
            All keys and values up to and including the call's, [R, H, length + N, W].
        """
        start, end = self.length, self.length + keys.shape[2]
        self.length = end
        if self.keys is None or self.values is None:
            self.keys, self.values = keys, values
            return keys, values
        self.keys[:, :, start:end], self.values[:, :, start:end] = keys, values
        return (self.keys[:, :, :end], self.values[:, :, :end]) if start else (keys, values)

    def get_seq_length(self, block_index: int = 0) -> int:  # noqa: ARG002  transformers' signature
        """Positions that precede the next call's."""
        return self.length

    def row(self, row: int) -> KeyValueState:
        assert self.keys is not None
        assert self.values is not None
        kept = slice(row, row + 1), slice(None), slice(self.length)
        return KeyValueState(self.keys[kept], self.values[kept], self.length)

    def keep_rows(self, index: Tensor) -> None:
        assert self.keys is not None
        assert self.values is not None
        self.keys, self.values = self.keys[index], self.values[index]

    def clear(self) -> None:
        self.length = 0


def stack_states(states: Sequence[KeyValueState], room: int) -> KeyValueState:
    """Returns a copy of single-row states as the rows of one, with memory for `room` further positions."""
    length = states[0].length
    assert all(state.length == length for state in states), "the rows of a batch have seen equally many positions"
    keys = torch.cat([state.keys[:, :, :length] for state in states if state.keys is not None])
    values = torch.cat([state.values[:, :, :length] for state in states if state.values is not None])
    return KeyValueState(with_room(keys, room), with_room(values, room), length)


def with_room(prompt_RHSW: Tensor, room: int) -> Tensor:
    """Returns a copy [R, H, S + room, W] of a prompt's S positions; the places after them are uninitialised."""
    rows, heads, length, width = prompt_RHSW.shape
    store = prompt_RHSW.new_empty(rows, heads, length + room, width)
    store[:, :, :length] = prompt_RHSW
    return store
