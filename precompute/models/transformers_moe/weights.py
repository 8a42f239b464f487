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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    ErnieFuseAndSplitTextVisionExperts,
    MergeModulelist,
    Transpose,
    WeightConverter,
    WeightRenaming,
    rename_source_key,
)

from ..checkpoint_files import FLOAT_DTYPES, open_shard, shard_tensors

_PIECE_BYTES = 1 << 20  # read at once
_OWN_MEMORY_BYTES = 1 << 17  # the heap keeps smaller tensors


class Shards:
    """Weight files, mapped into memory while they are read.

    Pages that were read count as the process's memory until their file is closed, so all are closed after `most_bytes`.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes, self._bytes_read = most_bytes, 0
        self._opened: dict[Path, Any] = {}
        self._files = ExitStack()

    def open(self, path: Path) -> Any:
        """Returns the file's tensors, as safetensors gives them; valid until the next call of `read`."""
        if path not in self._opened:
            self._opened[path] = self._files.enter_context(open_shard(path))
        return self._opened[path]

    def read(self, path: Path, name: str, start: int | None = None, end: int | None = None) -> Tensor:
        """Returns a tensor, or some of its rows; valid until the next call."""
        if self._bytes_read > self._most_bytes:
            self.close()
        tensors = self.open(path)
        found: Tensor = tensors.get_tensor(name) if start is None else tensors.get_slice(name)[start:end]
        self._bytes_read += found.nbytes
        return found

    def close(self) -> None:
        """Closes all files; they are opened again when they are read."""
        self._opened.clear()
        self._files.close()
        self._bytes_read = 0


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file; `[...]` reads it, as transformers does.

    Args:
        dtype: of the result; None keeps the file's.
        is_turned: of three dimensions, the last two are exchanged.
    """

    shards: Shards
    path: Path
    name: str
    stored_shape: tuple[int, ...]
    dtype: torch.dtype | None = None
    is_turned: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        shape = self.stored_shape
        return (shape[0], shape[2], shape[1]) if self.is_turned else shape

    def allocate(self, shape: tuple[int, ...]) -> Tensor:
        """Returns memory for a result of this tensor's dtype."""
        dtype = self.dtype
        if dtype is None:
            dtype = self.shards.read(self.path, self.name, *((0, 1) if self.stored_shape else ())).dtype
        return allocate(shape, dtype)

    def __getitem__(self, index: Any) -> Tensor:
        assert index is Ellipsis, "read as a whole"
        made = self.allocate(self.shape)
        self.read_into(made)
        return made

    def read_into(self, place: Tensor) -> None:
        """Reads the tensor into memory of its shape."""
        if not self.shape:
            place.copy_(self.shards.read(self.path, self.name))
            return
        step = 1 if self.is_turned else max(_PIECE_BYTES // max(place[:1].numel() * 4, 1), 1)
        for start in range(0, len(place), step):
            end = min(start + step, len(place))
            rows = self.shards.read(self.path, self.name, start, end)
            place[start:end].copy_(rows.transpose(1, 2) if self.is_turned else rows)


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
        stacked = first.allocate((len(self.parts), sum(rows), *first.shape[1:]))
        for expert, parts in enumerate(self.parts):
            for place, part in zip(stacked[expert].split(rows), parts, strict=True):
                part.read_into(place)
        return stacked


def allocate(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
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
    found = shard_tensors(directory)
    most_bytes = max(sum(path.stat().st_size for path in found) // 100, _PIECE_BYTES)
    shards = Shards(most_bytes)
    tensors: dict[str, StoredTensor] = {}
    for path, names in found.items():
        for name in names:
            stored = shards.open(path).get_slice(name)
            is_cast = stored.get_dtype() in FLOAT_DTYPES and not any(part in name for part in kept)
            shape = tuple(stored.get_shape())
            tensors[name] = StoredTensor(shards, path, name, shape, dtype if is_cast else None)
    shards.close()
    try:
        yield {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    finally:
        shards.close()


def arrange_experts(weights: Mapping[str, StoredTensor], model: PreTrainedModel) -> dict[str, Any]:
    """Replaces the tensors that transformers would stack into one parameter by one tensor under that parameter's name.

    Likewise, a tensor of all experts that transformers would transpose is read transposed.

    Args:
        model: on the meta device; its class says how names in files become names of parameters.
    """
    conversions = get_model_conversion_mapping(model)
    renamings = [entry for entry in conversions if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in conversions if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: entry for entry in converters for pattern in entry.source_patterns if _stacks(entry)}
    turned = {pattern for entry in converters for pattern in entry.source_patterns if _turns(entry)}
    parameters = model.state_dict()
    kept: dict[str, Any] = {}
    groups: dict[str, dict[str, list[str]]] = {}
    for name in sorted(weights, key=_natural):
        target, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, parameters)
        if pattern in by_pattern and target in parameters:
            groups.setdefault(target, {}).setdefault(pattern, []).append(name)
        elif pattern in turned and target in parameters:
            stored, wanted = weights[name], tuple(parameters[target].shape)
            other = replace(stored, is_turned=len(wanted) == 3 and len(stored.shape) == 3)
            kept[name] = other if stored.shape != wanted == other.shape else stored
        else:
            kept[name] = weights[name]
    for target, sources in groups.items():
        (converter,) = {id(by_pattern[pattern]): by_pattern[pattern] for pattern in sources}.values()
        columns = [[weights[name] for name in sources.get(pattern, ())] for pattern in converter.source_patterns]
        experts = tuple(zip(*columns, strict=False))
        shapes = {part.shape[1:] for column in columns for part in column[:1]}
        targets = [target.replace(converter.target_patterns[0], pattern) for pattern in converter.target_patterns]
        size, rest = divmod(len(experts), len(targets))
        if rest == 0 < size and len({len(column) for column in columns}) == len(shapes) == 1:
            for place, name in enumerate(targets):
                kept[name] = StackedExperts(experts[place * size : (place + 1) * size])
        else:  # transformers says what is missing
            kept |= {name: weights[name] for names in sources.values() for name in names}
    return kept


def _stacks(converter: WeightConverter) -> bool:
    """Whether a conversion only stacks experts, after concatenating an expert's tensors along their rows.

    Several parameters, such as the experts of text and of images, each take an equal share of the experts.
    """
    operations: list[Any] = converter.operations
    kinds = [(type(operation), getattr(operation, "dim", None)) for operation in operations]
    if [kind for kind, _ in kinds] == [ErnieFuseAndSplitTextVisionExperts]:
        return (operations[0].stack_dim, operations[0].concat_dim) == (0, 1)
    single = kinds == [(MergeModulelist, 0)] and len(converter.source_patterns) == 1
    return (single or kinds == [(MergeModulelist, 0), (Concatenate, 1)]) and len(converter.target_patterns) == 1


def _turns(converter: WeightConverter) -> bool:
    """Whether a conversion only transposes each expert, if the tensor does not have the parameter's shape yet."""
    if [type(operation) for operation in converter.operations] != [Transpose]:
        return False
    operation: Any = converter.operations[0]
    return operation.check_dims and {operation.dim0, operation.dim1} == {1, 2}


def _natural(name: str) -> list[Any]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
