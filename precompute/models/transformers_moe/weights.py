"""Weights for transformers to load: read a piece at a time, in their final dtype, with experts stacked in place.

Many checkpoints hold one tensor for each expert, and transformers stacks them, which holds both at once. Here the
stacked tensor is allocated once and filled. Large tensors have memory of their own, which returns to the system when a
conversion (such as a transposition) has used them; from the heap it would not, and the process would stay larger than
the model.
"""

from __future__ import annotations

import math
import mmap
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    rename_source_key,
)

from ..checkpoint_files import FLOAT_DTYPES, open_shard, shard_tensors

_PIECE_BYTES = 1 << 20  # read at once
_OWN_MEMORY_BYTES = 1 << 17  # the heap keeps smaller tensors


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file; `[...]` reads it, as transformers does.

    Args:
        source: safetensors' slice of the whole tensor.
        dtype: of the result; None keeps the file's.
    """

    source: Any
    dtype: torch.dtype | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.source.get_shape())

    def __getitem__(self, index: Any) -> Tensor:
        assert index is Ellipsis, "read as a whole"
        if not self.shape or 0 in self.shape:
            whole: Tensor = self.source[...]
            return whole if self.dtype is None else whole.to(self.dtype)
        made = _allocate(self.shape, self.dtype or self.source[0:1].dtype)
        self.read_into(made)
        return made

    def read_into(self, place: Tensor) -> None:
        """Reads the tensor into memory of its shape."""
        rows = max(_PIECE_BYTES // max(place[0].numel() * 4, 1), 1)
        for start in range(0, len(place), rows):
            end = min(start + rows, len(place))
            place[start:end].copy_(self.source[start:end])


@dataclass(frozen=True)
class StackedExperts:
    """One parameter made of one tensor for each expert, or of several that are concatenated.

    Args:
        parts: the tensors of each expert.
    """

    parts: tuple[tuple[StoredTensor, ...], ...]

    def __getitem__(self, index: Any) -> Tensor:
        assert index is Ellipsis, "read as a whole"
        first = self.parts[0][0]
        rows = [part.shape[0] for part in self.parts[0]]
        dtype = first.dtype or first.source[0:1].dtype
        stacked = _allocate((len(self.parts), sum(rows), *first.shape[1:]), dtype)
        for expert, parts in enumerate(self.parts):
            for place, part in zip(stacked[expert].split(rows), parts, strict=True):
                part.read_into(place)
        return stacked


def _allocate(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Returns uninitialised memory; if it is large, pages of its own."""
    size = math.prod(shape) * dtype.itemsize
    if size < _OWN_MEMORY_BYTES or not hasattr(mmap, "MAP_PRIVATE"):
        return torch.empty(shape, dtype=dtype)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=dtype).view(shape)


@contextmanager
def stored_weights(
    directory: Path, prefix: str, dtype: torch.dtype, kept: Collection[str]
) -> Iterator[dict[str, StoredTensor]]:
    """Opens every weight file and gives its tensors by name, unread.

    Args:
        dtype: of what is read, except for integers.
        kept: parts of names of tensors that keep the file's dtype.
        prefix: gives only tensors whose names start with it, and leaves it out of the names.

    Raises:
        CheckpointError: there are no safetensors, or a file cannot be read.
    """
    with ExitStack() as files:
        tensors: dict[str, StoredTensor] = {}
        for shard, names in shard_tensors(directory).items():
            opened = files.enter_context(open_shard(shard, map_file=False))
            for name in names:
                source = opened.get_slice(name)
                is_cast = source.get_dtype() in FLOAT_DTYPES and not any(part in name for part in kept)
                tensors[name] = StoredTensor(source, dtype if is_cast else None)
        yield {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def stack_experts(weights: Mapping[str, StoredTensor], model: PreTrainedModel) -> dict[str, Any]:
    """Replaces the tensors that transformers would stack into one parameter by one tensor under that parameter's name.

    Args:
        model: on the meta device; its class says how names in files become names of parameters.
    """
    conversions = get_model_conversion_mapping(model)
    renamings = [entry for entry in conversions if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in conversions if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: entry for entry in converters for pattern in entry.source_patterns if _stacks(entry)}
    parameters = model.state_dict()
    kept: dict[str, Any] = {}
    groups: dict[str, dict[str, list[str]]] = {}
    for name in sorted(weights, key=_natural):
        target, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, parameters)
        if pattern in by_pattern and target in parameters:
            groups.setdefault(target, {}).setdefault(pattern, []).append(name)
        else:
            kept[name] = weights[name]
    for target, sources in groups.items():
        (converter,) = {id(by_pattern[pattern]): by_pattern[pattern] for pattern in sources}.values()
        columns = [[weights[name] for name in sources.get(pattern, ())] for pattern in converter.source_patterns]
        stacked = StackedExperts(tuple(zip(*columns, strict=False)))
        shapes = {part.shape for column in columns for part in column[:1]}
        whole = len({len(column) for column in columns}) == 1 and len({shape[1:] for shape in shapes}) == 1
        if whole and target not in kept:
            kept[target] = stacked
        else:  # transformers says what is missing
            kept |= {name: weights[name] for names in sources.values() for name in names}
    return kept


def _stacks(converter: WeightConverter) -> bool:
    """Whether a conversion only stacks experts, after concatenating an expert's tensors along their rows."""
    kinds = [(type(operation), getattr(operation, "dim", None)) for operation in converter.operations]
    single = kinds == [(MergeModulelist, 0)] and len(converter.source_patterns) == 1
    return single or kinds == [(MergeModulelist, 0), (Concatenate, 1)]


def _natural(name: str) -> list[Any]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
