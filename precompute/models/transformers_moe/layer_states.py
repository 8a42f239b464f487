"""What one layer of a model of transformers keeps of its positions: transformers' own cache layer, of any kind.

Full attention, a sliding window and linear attention keep different tensors; all of them have the rows first.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedConfig
from transformers.cache_utils import CacheLayerMixin

_ROWS_SECOND = "indexer_position_ids"  # [dimensions, rows, positions]


class LayerState:
    """The state of one block for R rows: a `BlockState`."""

    def __init__(self, layer: Any, empty: Any = None) -> None:
        """
        Args:
            layer: a cache layer of transformers.
            empty: one without positions, which `clear` returns to; None: a copy of `layer`, which has none.
        """
        self.layer = layer
        self._empty = copy.copy(layer) if empty is None else empty

    def row(self, row: int) -> LayerState:
        return LayerState(_mapped(self.layer, lambda rows, dim: rows.narrow(dim, row, 1)), self._empty)

    def keep_rows(self, index: Tensor) -> None:
        self.layer = _mapped(self.layer, lambda rows, dim: rows.index_select(dim, index))

    def clear(self) -> None:
        self.layer = _copied(self._empty)

    def repeated(self, rows: int) -> LayerState:
        """Returns a copy of a single-row state with this many equal rows, which may be extended."""
        return LayerState(_mapped(self.layer, lambda one, dim: one.repeat_interleave(rows, dim)), self._empty)


def stack_states(states: Sequence[LayerState]) -> LayerState:
    """Returns a copy of states of the same block as the rows of one."""
    layers = [state.layer for state in states]
    stacked = _copied(layers[0])
    for name, value in vars(layers[0]).items():
        values = [vars(layer)[name] for layer in layers]
        if _has_rows(value):
            setattr(stacked, name, torch.cat(values, dim=_row_dimension(name)))
        elif isinstance(value, dict):
            together = {
                key: torch.cat([one[key] for one in values]) if _has_rows(inner) else inner
                for key, inner in value.items()
            }
            setattr(stacked, name, together)
    return LayerState(stacked, states[0]._empty)


class PastPositions(DynamicCache):
    """The cache of one call: every layer has `start` positions, whether or not it ran.

    transformers takes lengths and masks from the first layer of a kind, which may be one that the plan skips; an empty
    one would give wrong masks without an error.
    """

    def __init__(self, layers: list[Any], start: int) -> None:
        Cache.__init__(self, layers=layers)
        self.start = start

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002
        return self.start

    def get_query_offset(self, layer_idx: int = 0) -> int:  # noqa: ARG002
        return self.start

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        layer = self.layers[layer_idx]
        if not isinstance(layer, CacheLayerMixin):
            layer = next(one for one in self.layers if isinstance(one, CacheLayerMixin))
        if not getattr(layer, "is_sliding", False):
            return self.start + query_length, 0
        placed = copy.copy(layer)
        placed.cumulative_length = self.start
        return placed.get_mask_sizes(query_length)

    def has_previous_state(self, layer_idx: int | None = None, state_idx: int | None = None) -> bool:
        if layer_idx is None:
            return self.start > 0
        return super().has_previous_state(layer_idx, state_idx)


def empty_layers(config: PreTrainedConfig) -> list[Any]:
    """Returns one empty cache layer for each layer of a text model."""
    return list(DynamicCache(config=config).layers)


def fresh(layer: Any) -> Any:
    """Returns an empty layer like an empty one."""
    return _copied(layer)


def _mapped(layer: Any, change: Callable[[Tensor, int], Tensor]) -> Any:
    """Returns a copy of a layer with `change(tensor, dimension of the rows)` of every tensor with rows."""
    mapped = _copied(layer)
    for name, value in vars(layer).items():
        if _has_rows(value):
            setattr(mapped, name, change(value, _row_dimension(name)))
        elif isinstance(value, dict):
            setattr(mapped, name, {key: change(one, 0) if _has_rows(one) else one for key, one in value.items()})
    return mapped


def _copied(layer: Any) -> Any:
    """Returns a copy that shares tensors but no dictionaries."""
    copied = copy.copy(layer)
    for name, value in vars(layer).items():
        if isinstance(value, dict):
            setattr(copied, name, dict(value))
    return copied


def _has_rows(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim > 1


def _row_dimension(name: str) -> int:
    return 1 if name == _ROWS_SECOND else 0
